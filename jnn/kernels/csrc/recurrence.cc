// Recurrent layers: all steps in one call, with the weights once in the order in which products read them.

#include "recurrence.h"

#include <vector>

#include "parallel.h"

namespace jnn {
namespace {

// The input's products are made for so many rows at a time.
constexpr int64_t kRowsAtOnce = 256;
// And summed up over so many terms.
constexpr int64_t kDepth = 512;
// There are so many tasks for a stage at least, where there is work for them.
constexpr int64_t kTasks = 8;

// What comes out; what is not asked for is null. By step: lanes after their functions, the memory, and the state, which `y` is
// but for zeros where it is not valid.
template <class T>
struct Outputs {
  T *y, *h, *c = nullptr, *states = nullptr, *lanes = nullptr, *memory = nullptr;
};

template <class T, class Cell>
class Forward {
 public:
  Forward(const Layer<T>& layer, const Outputs<T>& out)
      : l(layer),
        out_(out),
        parts_(layer.batch, kRowsOf<kVectors>),
        groups_((vectors_of<T>(layer.hidden) + Cell::units - 1) / Cell::units),
        pitch_(groups_ * kWidth),
        hidden_(padded<T>(layer.hidden)),
        output_(padded<T>(layer.output)),
        steps_at_once_(std::clamp(kRowsAtOnce / layer.batch, int64_t{1}, layer.steps)),
        by_input_(memory<T>(groups_ * layer.input * kVectors * kLanes<T>)),
        by_state_(memory<T>(groups_ * layer.output * kVectors * kLanes<T>)),
        bias_(memory<T>(pitch_)),
        c_(memory<T>(Cell::remembers ? layer.batch * hidden_ : 0)),
        inputs_(memory<T>(steps_at_once_ * layer.batch * padded<T>(layer.input))),
        slots_(memory<T>(steps_at_once_ * layer.batch * pitch_)) {
    for (auto& h : h_) h = memory<T>(layer.batch * output_);
    if (layer.projection) {
      projected_groups_ = (vectors_of<T>(layer.output) + kTileVectors - 1) / kTileVectors;
      projection_ = memory<T>(projected_groups_ * layer.hidden * kTileColumns<T>);
      features_ = memory<T>(layer.batch * hidden_);
    }
  }

  void run(Pool& pool) {
    Plan<Stage> plan;
    plan.add(Stage::start, 0, 2 * groups_ + projected_groups_ + parts_.parts);
    for (int64_t step = 0; step < l.steps; ++step) {
      if (step % steps_at_once_ == 0) {
        const Parts rows = input_rows(step);
        plan.add(Stage::inputs, step, (rows.parts + kTasks - 1) / kTasks);
        plan.add(Stage::shares, step, groups_ * blocks(rows));
      }
      plan.add(Stage::step, step, groups_ * parts_.parts);
      if (l.projection) plan.add(Stage::project, step, projected_groups_ * parts_.parts);
    }
    in_stages(pool, plan.tasks, [&](int64_t stage, int64_t task) {
      const auto [kind, step] = plan.stages[stage];
      if (kind == Stage::start) start(task);
      if (kind == Stage::inputs) inputs(step, task);
      if (kind == Stage::shares) shares(step, task);
      if (kind == Stage::step) advance(step, task / parts_.parts, task % parts_.parts);
      if (kind == Stage::project) project(step, task / parts_.parts, task % parts_.parts);
    });
  }

 private:
  enum class Stage { start, inputs, shares, step, project };
  // Vectors of a product, and of slots, for a group of units.
  static constexpr int kVectors = Cell::gates * Cell::units, kSlots = Cell::lanes * Cell::units;
  static constexpr int64_t kWidth = kSlots * kLanes<T>;

  // Weights in their order, biases and the first state.
  void start(int64_t task) {
    if (task < groups_) return order(task, 0, l.by_input, l.input, by_input_.get()), fill_bias(task);
    if ((task -= groups_) < groups_) return order(task, Cell::first, l.by_state, l.output, by_state_.get());
    if ((task -= groups_) < projected_groups_) {
      for (int v = 0; v < kTileVectors; ++v) {
        const int64_t row = (task * kTileVectors + v) * kLanes<T>;
        T* to = projection_.get() + task * l.hidden * kTileColumns<T> + v * kLanes<T>;
        in_columns(l.projection + row * l.hidden, l.hidden, l.output - row, l.hidden, to, kTileColumns<T>);
      }
      return;
    }
    task -= projected_groups_;
    const int64_t begin = parts_.begin(task), rows = parts_.size(task);
    in_runs(l.h + begin * l.output, l.output, rows, l.output, h_[0].get() + begin * output_);
    if constexpr (Cell::remembers)
      for (int64_t n = begin; n < begin + rows; ++n) std::copy_n(l.c + n * l.hidden, l.hidden, c_.get() + n * hidden_);
  }

  // The rows of a weight of `depth` columns for the slots from `first` on, for a group's units.
  void order(int64_t group, int first, const T* weight, int64_t depth, T* ordered) {
    for (int unit = 0; unit < Cell::units; ++unit) {
      const int64_t begin = (group * Cell::units + unit) * kLanes<T>;
      for (int i = 0; i < Cell::gates; ++i) {
        const int64_t gate = std::min(Cell::lane_of[first + i], Cell::gates - 1), v = unit * Cell::gates + i;
        T* to = ordered + (group * depth * kVectors + v) * kLanes<T>;
        in_columns(weight + (gate * l.hidden + begin) * depth, depth, l.hidden - begin, depth, to, kVectors * kLanes<T>);
      }
    }
  }

  void fill_bias(int64_t group) {
    std::fill_n(bias_.get() + group * kWidth, kWidth, T{0});
    if (!l.input_bias) return;
    for (int64_t i = 0; i < Cell::units * kLanes<T>; ++i) {
      const int64_t unit = group * Cell::units * kLanes<T> + i;
      if (unit >= l.hidden) return;
      for (int s = 0; s < Cell::lanes; ++s) {
        const int64_t at = std::min(Cell::lane_of[s], Cell::gates - 1) * l.hidden + unit;
        const T sum = (s < Cell::gates ? l.input_bias[at] : 0) + (s >= Cell::first ? l.state_bias[at] : 0);
        bias_[group * kWidth + (i / kLanes<T> * Cell::lanes + s) * kLanes<T> + i % kLanes<T>] = sum;
      }
    }
  }

  // Of the steps whose inputs' products are made together: the first, in time, and their rows.
  int64_t first_time(int64_t step) const {
    const int64_t begin = step / steps_at_once_ * steps_at_once_, end = std::min(begin + steps_at_once_, l.steps);
    return l.reverse ? l.steps - end : begin;
  }
  Parts input_rows(int64_t step) const { return Parts(std::min(steps_at_once_, l.steps - step) * l.batch, kRowsOf<kVectors>); }
  // Blocks of rows, which are tasks for each group.
  int64_t blocks(const Parts& rows) const { return std::clamp((kTasks + groups_ - 1) / groups_, int64_t{1}, rows.parts); }

  void inputs(int64_t step, int64_t task) {
    const Parts rows = input_rows(step);
    const T* from = l.x + first_time(step) * l.batch * l.input;
    for (int64_t part = task * kTasks; part < std::min((task + 1) * kTasks, rows.parts); ++part) {
      const int64_t begin = rows.begin(part);
      in_runs(from + begin * l.input, l.input, rows.size(part), l.input, inputs_.get() + begin * padded<T>(l.input));
    }
  }

  void shares(int64_t step, int64_t task) {
    const Parts rows = input_rows(step), mine(rows.parts, (rows.parts + blocks(rows) - 1) / blocks(rows));
    const int64_t group = task / blocks(rows), block = task % blocks(rows);
    if (block >= mine.parts) return;
    const T* bias = bias_.get() + group * kWidth;
    for (int64_t k = 0; k < l.input; k += kDepth) {
      const T* weight = by_input_.get() + (group * l.input + k) * kVectors * kLanes<T>;
      for (int64_t part = mine.begin(block); part < mine.begin(block + 1); ++part) {
        const int64_t begin = rows.begin(part), count = rows.size(part);
        T* slots = slots_.get() + begin * pitch_ + group * kWidth;
        for (int64_t i = 0; k == 0 && i < count; ++i) std::copy_n(bias, kWidth, slots + i * pitch_);
        const T* from = inputs_.get() + begin * padded<T>(l.input) + k * count;
        kPanels<T, kVectors>[count - 1](std::min(kDepth, l.input - k), from, weight, {slots, pitch_}, slots, pitch_);
      }
    }
  }

  // A step for a group of units and a part of the batch.
  void advance(int64_t step, int64_t group, int64_t part) {
    const int64_t begin = parts_.begin(part), rows = parts_.size(part), time = l.time(step);
    T* slots = slots_.get() + ((time - first_time(step)) * l.batch + begin) * pitch_ + group * kWidth;
    if (l.any_valid(time, begin, rows)) {
      const T* weight = by_state_.get() + group * l.output * kVectors * kLanes<T>;
      T* sums = slots + Cell::first * kLanes<T>;
      kPanels<T, kVectors>[rows - 1](l.output, h_[step % 2].get() + begin* output_, weight, {sums, pitch_}, sums, pitch_);
    }
    for (int unit = 0; unit < Cell::units; ++unit) {
      const int64_t vector = group * Cell::units + unit;
      if (vector * kLanes<T> < l.hidden) act(step, part, vector, slots + unit * Cell::lanes * kLanes<T>);
    }
  }

  // What a cell makes of the slots, for a vector of units.
  void act(int64_t step, int64_t part, int64_t vector, T* slots) {
    const int64_t begin = parts_.begin(part), rows = parts_.size(part), time = l.time(step), unit = vector * kLanes<T>,
                  count = l.hidden - unit;
    T* memory = Cell::remembers ? c_.get() + begin * hidden_ + unit : nullptr;
    for (int64_t i = 0; i < rows; ++i)
      if (l.is_valid(time, begin + i)) Cell::begin(slots + i * pitch_, memory + i * hidden_);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t n = begin + i, at = begin * hidden_ + (vector * rows + i) * kLanes<T>, row = time * l.batch + n;
      const bool valid = l.is_valid(time, n);
      const Vector<T> c = Cell::remembers ? load(memory + i * hidden_) : Vector<T>{};
      Vector<T> h = l.projection ? Vector<T>{} : load(h_[step % 2].get() + at);
      if (valid) h = Cell::end(slots + i * pitch_, h, c);
      if (Cell::remembers && out_.memory) store_some(out_.memory + row * l.hidden + unit, c, count);
      if (Cell::remembers && step == l.steps - 1) store_some(out_.c + n * l.hidden + unit, c, count);
      if (Cell::records && out_.lanes) record(row, unit, valid ? slots + i * pitch_ : nullptr);
      if (l.projection) store(features_.get() + at, h);
      else become(step, n, unit, at, h, valid);
    }
  }

  void record(int64_t row, int64_t unit, const T* slots) {
    for (int s = 0; s < Cell::lanes; ++s) {
      T* to = out_.lanes + (row * Cell::lanes + Cell::lane_of[s]) * l.hidden + unit;
      store_some(to, slots ? load(slots + s * kLanes<T>) : Vector<T>{}, l.hidden - unit);
    }
  }

  // The new state of some units, or of some of what it is projected to, which stands `at` some place of the state in runs.
  void become(int64_t step, int64_t n, int64_t unit, int64_t at, Vector<T> h, bool valid) {
    const int64_t to = (l.time(step) * l.batch + n) * l.output + unit, count = l.output - unit;
    store(h_[(step + 1) % 2].get() + at, h);
    store_some(out_.y + to, valid ? h : Vector<T>{}, count);
    if (out_.states) store_some(out_.states + to, h, count);
    if (step == l.steps - 1) store_some(out_.h + n * l.output + unit, h, count);
  }

  void project(int64_t step, int64_t group, int64_t part) {
    const int64_t begin = parts_.begin(part), rows = parts_.size(part), time = l.time(step);
    T sums[kRowsOf<kVectors> * kTileColumns<T>];
    const T* weight = projection_.get() + group * l.hidden * kTileColumns<T>;
    if (l.any_valid(time, begin, rows))
      kPanels<T, kTileVectors>[rows - 1](l.hidden, features_.get() + begin* hidden_, weight, {}, sums, kTileColumns<T>);
    for (int64_t i = 0; i < rows; ++i)
      for (int v = 0; v < kTileVectors; ++v) {
        const int64_t vector = group * kTileVectors + v, at = begin * output_ + (vector * rows + i) * kLanes<T>;
        if (vector * kLanes<T> >= l.output) continue;
        const bool valid = l.is_valid(time, begin + i);
        const Vector<T> h = valid ? load(sums + i * kTileColumns<T> + v * kLanes<T>) : load(h_[step % 2].get() + at);
        become(step, begin + i, vector * kLanes<T>, at, h, valid);
      }
  }

  const Layer<T> l;
  const Outputs<T> out_;
  const Parts parts_;
  // Groups of units; elements of a row of slots, of the hidden state and of the output, in whole vectors.
  const int64_t groups_, pitch_, hidden_, output_, steps_at_once_;
  int64_t projected_groups_ = 0;
  Memory<T> by_input_, by_state_, projection_, bias_, c_, inputs_, slots_, features_;
  // The state before a step and after it, in turns, by parts of the batch, in runs.
  Memory<T> h_[2];
};

ffi::Error forward(Pool pool, ffi::RemainingArgs arguments, ffi::RemainingRets results, int64_t mode, bool reverse, bool biased,
                   bool projected, bool masked, bool record) {
  const Options options{mode, reverse, biased, projected, masked};
  return by_type(arguments.get<ffi::AnyBuffer>(0)->element_type(), [&](auto zero) {
    using T = decltype(zero);
    by_mode<T>(mode, [&](auto cell) {
      using Cell = decltype(cell);
      Reader<ffi::RemainingRets, T> write(results);
      Outputs<T> out;
      out.y = write.array(), out.h = write.array(), out.c = write.array_if(Cell::remembers);
      out.states = write.array_if(record && masked), out.lanes = write.array_if(record && Cell::records);
      out.memory = write.array_if(record && Cell::remembers);
      Forward<T, Cell>(layer_of<T, Cell>(arguments, 0, options), out).run(pool);
    });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_recurrence, forward,
                              ffi::Ffi::Bind()
                                  .Ctx<Pool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("mode")
                                  .Attr<bool>("reverse")
                                  .Attr<bool>("biased")
                                  .Attr<bool>("projected")
                                  .Attr<bool>("masked")
                                  .Attr<bool>("record"));

}  // namespace jnn
