// The gradients of recurrent layers: all steps backwards in one call, and after them the products over all steps.

#include <array>
#include <vector>

#include "parallel.h"
#include "recurrence.h"

namespace jnn {
namespace {

// Rows, and terms, of the products over all steps that are made at a time.
constexpr int64_t kRowsAtOnce = 4 * kRowsOf<kTileVectors>, kDepth = 256;

// What comes in of the forward pass, see Outputs in recurrence.cc, and the gradients by its outputs.
template <class T>
struct Known {
  const T *states, *lanes = nullptr, *memory = nullptr, *by_y, *by_h, *by_c = nullptr;
};

// Gradients by the arrays of a layer.
template <class T>
struct Slopes {
  T *x, *by_input, *by_state, *h, *c = nullptr, *input_bias = nullptr, *state_bias = nullptr, *projection = nullptr;
};

// A matrix in panels of kTileColumns columns, and within them of kDepth rows.
template <class T>
struct Panels {
  int64_t depth, columns, count;
  Memory<T> data;

  Panels(int64_t depth, int64_t columns)
      : depth(depth), columns(columns), count((columns + kTileColumns<T> - 1) / kTileColumns<T>), data(memory<T>(count * size())) {}
  int64_t size() const { return depth * kTileColumns<T>; }
  T* at(int64_t panel, int64_t row) { return data.get() + panel * size() + row * kTileColumns<T>; }
  void fill(int64_t panel, int64_t begin, int64_t rows, const T* from, int64_t stride) {
    const int64_t column = panel * kTileColumns<T>;
    in_rows(from + column, stride, rows, columns - column, kTileColumns<T>, at(panel, begin));
  }
};

template <class T, class Cell>
class Backward {
 public:
  Backward(const Layer<T>& layer, const Known<T>& known, const Slopes<T>& slopes, bool wants_input, bool wants_weights)
      : l(layer),
        known_(known),
        out_(slopes),
        wants_input_(wants_input),
        wants_weights_(wants_weights),
        parts_(layer.batch, kRowsOf<kTileVectors>),
        vectors_(vectors_of<T>(layer.hidden)),
        hidden_(padded<T>(layer.hidden)),
        output_(padded<T>(layer.output)),
        rows_(layer.steps * layer.batch),
        pitch_(Cell::lanes * layer.hidden),
        by_state_(vectors_ * Cell::gates * kLanes<T>, layer.output),
        by_input_(Cell::gates * layer.hidden, wants_input ? layer.input : 0),
        projection_(layer.output, layer.projection ? layer.hidden : 0),
        inputs_(rows_, wants_weights ? layer.input : 0),
        states_(rows_, wants_weights ? layer.output : 0),
        features_(rows_, wants_weights && layer.projection ? layer.hidden : 0),
        dc_(memory<T>(Cell::remembers ? layer.batch * hidden_ : 0)),
        dh_(memory<T>(layer.batch * output_)),
        lanes_(memory<T>(rows_ * pitch_ + kSlack)),
        outputs_(memory<T>(layer.projection ? rows_ * layer.output + kSlack : 0)),
        runs_of_outputs_(memory<T>(layer.projection ? layer.batch * output_ : 0)) {
    for (auto& runs : runs_) runs = memory<T>(layer.batch * vectors_ * Cell::gates * kLanes<T>);
  }

  void run(Pool& pool) {
    Plan<Stage> plan;
    plan.add(Stage::start, 0, by_state_.count + projection_.count + parts_.parts);
    for (int64_t step = l.steps - 1; step >= 0; --step) {
      plan.add(Stage::step, step, by_state_.count * parts_.parts);
      if (l.projection) plan.add(Stage::features, step, projection_.count * parts_.parts);
    }
    plan.add(Stage::initial, -1, by_state_.count * parts_.parts);
    if (wants_input_) {
      plan.add(Stage::order, 0, by_input_.count);
      plan.add(Stage::by_input, 0, blocks().parts);
    }
    if (wants_weights_) {
      plan.add(Stage::gather, 0, Parts(rows_, kDepth).parts);
      plan.add(Stage::by_weights, 0, Cell::lanes * Parts(l.hidden, kRowsAtOnce).parts);
      if (l.projection) plan.add(Stage::by_projection, 0, Parts(l.output, kRowsAtOnce).parts);
    }
    in_stages(pool, plan.tasks, [&](int64_t stage, int64_t task) {
      const auto [kind, step] = plan.stages[stage];
      if (kind == Stage::start) start(task);
      if (kind == Stage::step || kind == Stage::initial) retreat(step, task / parts_.parts, task % parts_.parts);
      if (kind == Stage::features) retreat_features(step, task / parts_.parts, task % parts_.parts);
      if (kind == Stage::order) by_input_.fill(task, 0, by_input_.depth, l.by_input, l.input);
      if (kind == Stage::by_input) by_input(task);
      if (kind == Stage::gather) gather(task * kDepth, std::min((task + 1) * kDepth, rows_));
      if (kind == Stage::by_weights) by_weights(task);
      if (kind == Stage::by_projection) by_projection(task);
    });
  }

 private:
  enum class Stage { start, step, features, initial, order, by_input, gather, by_weights, by_projection };
  static constexpr int kColumns = kTileColumns<T>;
  static constexpr int64_t kSlack = kLanes<T> * (kRowsOf<kTileVectors> / kLanes<T> + 1);

  // The lane in which the state's product for a gate adds up.
  static int64_t lane_of(int64_t gate) { return Cell::lane_of[Cell::first + gate]; }

  // The state's weights, by vectors of units and gates, the projection's, and the gradients by the last state.
  void start(int64_t task) {
    if (task < by_state_.count) {
      const int64_t column = task * kColumns;
      T* to = by_state_.at(task, 0);
      for (int64_t vector = 0; vector < vectors_; ++vector)
        for (int64_t gate = 0; gate < Cell::gates; ++gate) {
          const int64_t row = gate * l.hidden + vector * kLanes<T>, count = std::min<int64_t>(kLanes<T>, l.hidden - vector * kLanes<T>);
          in_rows(l.by_state + row * l.output + column, l.output, count, l.output - column, kColumns, to);
          std::fill(to + count * kColumns, to + kLanes<T> * kColumns, T{0});
          to += kLanes<T> * kColumns;
        }
      return;
    }
    if ((task -= by_state_.count) < projection_.count) return projection_.fill(task, 0, l.output, l.projection, l.hidden);
    task -= projection_.count;
    for (int64_t n = parts_.begin(task); n < parts_.begin(task + 1); ++n) {
      std::copy_n(known_.by_h + n * l.output, l.output, dh_.get() + n * output_);
      if constexpr (Cell::remembers) std::copy_n(known_.by_c + n * l.hidden, l.hidden, dc_.get() + n * hidden_);
    }
  }

  // The gradient by some of the state after a step, or before all of them for step -1, for a part of the batch.
  void retreat(int64_t step, int64_t panel, int64_t part) {
    const int64_t begin = parts_.begin(part), rows = parts_.size(part);
    T sums[kRowsOf<kTileVectors> * kColumns];
    std::fill_n(sums, rows * kColumns, T{0});
    if (step < l.steps - 1 && l.any_valid(l.time(step + 1), begin, rows)) {
      const T* slopes = runs_[(step + 1) & 1].get() + begin * vectors_ * Cell::gates * kLanes<T>;
      kPanels<T, kTileVectors>[rows - 1](by_state_.depth, slopes, by_state_.at(panel, 0), {}, sums, kColumns);
    }
    for (int64_t i = 0; i < rows; ++i)
      for (int v = 0; v < kTileVectors; ++v) {
        const int64_t vector = panel * kTileVectors + v, unit = vector * kLanes<T>, n = begin + i, count = l.output - unit;
        if (count <= 0) break;
        Vector<T> dh = load(sums + i * kColumns + v * kLanes<T>) + load(dh_.get() + n * output_ + unit);
        if (step < 0) {
          store_some(out_.h + n * l.output + unit, dh, count);
          if constexpr (Cell::remembers)
            if (!l.projection) store_some(out_.c + n * l.hidden + unit, load(dc_.get() + n * hidden_ + unit), count);
          continue;
        }
        const int64_t row = l.time(step) * l.batch + n;
        const bool valid = l.is_valid(l.time(step), n);
        if (valid) dh += load_some(known_.by_y + row * l.output + unit, count);
        if (l.projection) keep(row, n, unit, begin * output_ + (vector * rows + i) * kLanes<T>, dh, valid);
        else act(step, part, i, vector, dh, valid);
      }
  }

  // The gradient by the output of the projection.
  void keep(int64_t row, int64_t n, int64_t unit, int64_t at, Vector<T> dh, bool valid) {
    store(dh_.get() + n * output_ + unit, valid ? Vector<T>{} : dh);
    dh = valid ? dh : Vector<T>{};
    store_some(outputs_.get() + row * l.output + unit, dh, l.output - unit);
    store(runs_of_outputs_.get() + at, dh);
  }

  // The gradient by its input.
  void retreat_features(int64_t step, int64_t panel, int64_t part) {
    const int64_t begin = parts_.begin(part), rows = parts_.size(part), time = l.time(step);
    T sums[kRowsOf<kTileVectors> * kColumns];
    if (l.any_valid(time, begin, rows))
      kPanels<T, kTileVectors>[rows - 1](l.output, runs_of_outputs_.get() + begin* output_, projection_.at(panel, 0), {}, sums, kColumns);
    for (int64_t i = 0; i < rows; ++i)
      for (int v = 0; v < kTileVectors; ++v) {
        const int64_t vector = panel * kTileVectors + v, unit = vector * kLanes<T>;
        if (unit >= l.hidden) break;
        act(step, part, i, vector, load(sums + i * kColumns + v * kLanes<T>), l.is_valid(time, begin + i));
        if constexpr (Cell::remembers)
          if (step == 0) {
            const T* dc = dc_.get() + (begin + i) * hidden_ + unit;
            store_some(out_.c + (begin + i) * l.hidden + unit, load(dc), l.hidden - unit);
          }
      }
  }

  // From the gradient by what a cell gives, those by its lanes and the state before.
  void act(int64_t step, int64_t part, int64_t i, int64_t vector, Vector<T> dh, bool valid) {
    const int64_t n = parts_.begin(part) + i, unit = vector * kLanes<T>, count = l.hidden - unit;
    const int64_t row = l.time(step) * l.batch + n, rows = parts_.size(part);
    Vector<T> slopes[Cell::lanes] = {}, carried = dh;
    if (valid) {
      Vector<T> lanes[Cell::lanes], dc{}, c{}, c_before{};
      for (int s = 0; Cell::records && s < Cell::lanes; ++s)
        lanes[s] = load_some(known_.lanes + (row * Cell::lanes + s) * l.hidden + unit, count);
      if constexpr (Cell::remembers) {
        dc = load(dc_.get() + n * hidden_ + unit);
        c = load_some(known_.memory + row * l.hidden + unit, count);
        c_before = load_some(before(known_.memory, l.c, l.hidden, step, n) + unit, count);
      }
      const Vector<T> h = Cell::records ? Vector<T>{} : load_some(known_.states + row * l.output + unit, count);
      const bool asks = Cell::records && !Cell::remembers;
      const Vector<T> h_before = asks ? load_some(before(known_.states, l.h, l.output, step, n) + unit, count) : Vector<T>{};
      carried = Cell::backward(lanes, h_before, h, c_before, c, dh, dc, slopes);
      if constexpr (Cell::remembers) store(dc_.get() + n * hidden_ + unit, dc);
    }
    if (!l.projection) store(dh_.get() + n * output_ + unit, carried);
    for (int s = 0; s < Cell::lanes; ++s) store_some(lanes_.get() + row * pitch_ + s * l.hidden + unit, slopes[s], count);
    T* runs = runs_[step & 1].get() + parts_.begin(part) * vectors_ * Cell::gates * kLanes<T>;
    for (int gate = 0; gate < Cell::gates; ++gate) {
      const Vector<T> slope = slopes[lane_of(gate)];
      const Vector<T> there = count >= kLanes<T> ? slope : first_lanes(slope, count);
      store(runs + ((vector * Cell::gates + gate) * rows + i) * kLanes<T>, there);
    }
  }

  static Vector<T> first_lanes(Vector<T> v, int64_t count) {
    T lanes[kLanes<T>];
    store(lanes, v);
    return load_some(lanes, count);
  }

  // What stood in `states` before a step.
  const T* before(const T* states, const T* first, int64_t size, int64_t step, int64_t n) const {
    return step == 0 ? first + n * size : states + (l.time(step - 1) * l.batch + n) * size;
  }

  Parts blocks() const { return Parts(rows_, kRowsAtOnce); }

  // The gradient by some rows of the input.
  void by_input(int64_t task) {
    const int64_t depth = by_input_.depth, first = blocks().begin(task), count = blocks().size(task);
    const Parts tiles(count, kRowsOf<kTileVectors>);
    const Memory<T> runs = memory<T>(kRowsAtOnce * kDepth), sums = memory<T>(kRowsAtOnce * by_input_.count * kColumns);
    const int64_t pitch = by_input_.count * kColumns;
    for (int64_t k = 0; k < depth; k += kDepth) {
      const int64_t terms = std::min(kDepth, depth - k);
      for (int64_t t = 0; t < tiles.parts; ++t)
        in_runs(lanes_.get() + (first + tiles.begin(t)) * pitch_ + k, pitch_, tiles.size(t), terms, runs.get() + tiles.begin(t) * kDepth);
      for (int64_t panel = 0; panel < by_input_.count; ++panel)
        for (int64_t t = 0; t < tiles.parts; ++t) {
          const int64_t begin = tiles.begin(t);
          T* to = sums.get() + begin * pitch + panel * kColumns;
          kPanels<T, kTileVectors>[tiles.size(t) - 1](terms, runs.get() + begin* kDepth, by_input_.at(panel, k),
                                                      {k > 0 ? to : nullptr, pitch}, to, pitch);
        }
    }
    for (int64_t i = 0; i < count; ++i) std::copy_n(sums.get() + i * pitch, l.input, out_.x + (first + i) * l.input);
  }

  // Inputs, and states before each step, as panels.
  void gather(int64_t begin, int64_t end) {
    for (int64_t panel = 0; panel < inputs_.count; ++panel) inputs_.fill(panel, begin, end - begin, l.x + begin * l.input, l.input);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row % l.batch, time = row / l.batch, step = l.time(time);
      const T* from = before(known_.states, l.h, l.output, step, n);
      for (int64_t panel = 0; panel < states_.count; ++panel) states_.fill(panel, row, 1, from, l.output);
      for (int64_t panel = 0; panel < features_.count; ++panel)
        for (int v = 0; v < kTileVectors; ++v) {
          const int64_t unit = panel * kColumns + v * kLanes<T>, count = l.hidden - unit;
          Vector<T> feature{};
          if constexpr (Cell::remembers)
            if (count > 0 && l.is_valid(time, n)) {
              const T* o = known_.lanes + (row * Cell::lanes + Cell::lanes - 1) * l.hidden + unit;
              feature = load_some(o, count) * tanh<T>(load_some(known_.memory + row * l.hidden + unit, count));
            }
          store(features_.at(panel, row) + v * kLanes<T>, feature);
        }
    }
  }

  // The gradients by some rows of the weights, of one lane, and by their biases.
  void by_weights(int64_t task) {
    const Parts units(l.hidden, kRowsAtOnce);
    const int64_t lane = task / units.parts, unit = units.begin(task % units.parts), count = units.size(task % units.parts);
    const int64_t gate = std::min<int64_t>(lane, Cell::gates - 1), row = gate * l.hidden + unit;
    const bool of_input = lane < Cell::gates, of_state = lane == lane_of(gate);
    const Memory<T> totals = memory<T>(count);
    const std::array<Factor, 2> factors{Factor{of_input ? &inputs_ : nullptr, out_.by_input + row * l.input},
                                        Factor{of_state ? &states_ : nullptr, out_.by_state + row * l.output}};
    correlate(lanes_.get() + lane * l.hidden + unit, pitch_, count, factors, totals.get());
    if (of_input && out_.input_bias) std::copy_n(totals.get(), count, out_.input_bias + row);
    if (of_state && out_.state_bias) std::copy_n(totals.get(), count, out_.state_bias + row);
  }

  void by_projection(int64_t task) {
    const Parts units(l.output, kRowsAtOnce);
    const int64_t unit = units.begin(task), count = units.size(task);
    const Memory<T> totals = memory<T>(count);
    const std::array<Factor, 1> factors{Factor{&features_, out_.projection + unit * l.hidden}};
    correlate(outputs_.get() + unit, l.output, count, factors, totals.get());
  }

  // A matrix of as many rows as there are of all steps, and where the product goes.
  struct Factor {
    Panels<T>* panels;
    T* to;
  };

  // The transposed product of `count` columns of a matrix by each of the factors, and the columns' sums.
  template <size_t n>
  void correlate(const T* from, int64_t pitch, int64_t count, const std::array<Factor, n>& factors, T* totals) {
    constexpr int kMost = kRowsOf<kTileVectors>;
    const Parts tiles(count, kMost);
    int64_t width = 0;
    for (const Factor& factor : factors) width += factor.panels ? factor.panels->count * kColumns : 0;
    const Memory<T> ordered = memory<T>(kRowsAtOnce * kDepth + kSlack), sums = memory<T>(count * width);
    std::fill_n(totals, count, T{0});
    for (int64_t k = 0; k < rows_; k += kDepth) {
      const int64_t terms = std::min(kDepth, rows_ - k);
      for (int64_t t = 0; t < tiles.parts; ++t)
        columns(from + k * pitch + tiles.begin(t), pitch, terms, tiles.size(t), ordered.get() + tiles.begin(t) * kDepth,
                totals + tiles.begin(t));
      int64_t at = 0;
      for (const Factor& factor : factors)
        for (int64_t panel = 0; factor.panels && panel < factor.panels->count; ++panel, at += kColumns)
          for (int64_t t = 0; t < tiles.parts; ++t) {
            const T* left = ordered.get() + tiles.begin(t) * kDepth;
            T* to = sums.get() + tiles.begin(t) * width + at;
            kPanels<T, kTileVectors, 1>[tiles.size(t) - 1](terms, left, factor.panels->at(panel, k), {k > 0 ? to : nullptr, width}, to,
                                                           width);
          }
    }
    int64_t at = 0;
    for (const Factor& factor : factors) {
      if (!factor.panels) continue;
      const int64_t size = factor.panels->columns;
      for (int64_t i = 0; i < count; ++i) std::copy_n(sums.get() + i * width + at, size, factor.to + i * size);
      at += factor.panels->count * kColumns;
    }
  }

  // `count` columns of a matrix as a tile reads them; their sums add to `totals`. Up to kSlack beyond is read and written.
  static void columns(const T* from, int64_t pitch, int64_t terms, int64_t count, T* to, T* totals) {
    constexpr int kMost = (kRowsOf<kTileVectors> + kLanes<T> - 1) / kLanes<T>;
    Vector<T> sums[kMost] = {};
    for (int64_t k = 0; k < terms; ++k)
      for (int v = 0; v * kLanes<T> < count; ++v) {
        const Vector<T> found = load(from + k * pitch + v * kLanes<T>);
        store(to + k * count + v * kLanes<T>, found);
        sums[v] += found;
      }
    T lanes[kMost * kLanes<T>];
    for (int v = 0; v < kMost; ++v) store(lanes + v * kLanes<T>, sums[v]);
    for (int64_t i = 0; i < count; ++i) totals[i] += lanes[i];
  }

  const Layer<T> l;
  const Known<T> known_;
  const Slopes<T> out_;
  const bool wants_input_, wants_weights_;
  const Parts parts_;
  // Vectors of units; elements of the hidden state and of the output in whole vectors; rows of all steps; lanes of a row.
  const int64_t vectors_, hidden_, output_, rows_, pitch_;
  Panels<T> by_state_, by_input_, projection_, inputs_, states_, features_;
  // The gradients by the state before a step, less what its products give; by lanes, for all steps; by projections.
  Memory<T> dc_, dh_, lanes_, outputs_, runs_of_outputs_;
  // Those by lanes of a step and the one after, in turns, by parts of the batch, in runs.
  Memory<T> runs_[2];
};

ffi::Error backward(Pool pool, ffi::RemainingArgs arguments, ffi::RemainingRets results, int64_t mode, bool reverse, bool biased,
                    bool projected, bool masked, bool wants_input, bool wants_weights) {
  const Options options{mode, reverse, biased, projected, masked};
  return by_type(arguments.get<ffi::AnyBuffer>(0)->element_type(), [&](auto zero) {
    using T = decltype(zero);
    by_mode<T>(mode, [&](auto cell) {
      using Cell = decltype(cell);
      Reader<ffi::RemainingArgs, const T> read(arguments);
      Known<T> known;
      known.by_y = read.array(), known.by_h = read.array(), known.by_c = read.array_if(Cell::remembers);
      known.states = read.array(), known.lanes = read.array_if(Cell::records), known.memory = read.array_if(Cell::remembers);
      Reader<ffi::RemainingRets, T> write(results);
      Slopes<T> slopes;
      slopes.x = write.array(), slopes.by_input = write.array(), slopes.by_state = write.array(), slopes.h = write.array();
      slopes.c = write.array_if(Cell::remembers), slopes.input_bias = write.array_if(biased), slopes.state_bias = write.array_if(biased);
      slopes.projection = write.array_if(projected);
      const Layer<T> layer = layer_of<T, Cell>(arguments, read.at(), options);
      Backward<T, Cell>(layer, known, slopes, wants_input, wants_weights).run(pool);
    });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_recurrence_gradient, backward,
                              ffi::Ffi::Bind()
                                  .Ctx<Pool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("mode")
                                  .Attr<bool>("reverse")
                                  .Attr<bool>("biased")
                                  .Attr<bool>("projected")
                                  .Attr<bool>("masked")
                                  .Attr<bool>("wants_input")
                                  .Attr<bool>("wants_weights"));

}  // namespace jnn
