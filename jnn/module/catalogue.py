"""The stateful twin of every pure layer and loss: one line each, typed by the layer's fields."""

from __future__ import annotations

from .. import layers, losses
from .adaptive_softmax import AdaptiveLogSoftmaxWithLoss as AdaptiveLogSoftmaxWithLoss
from .lazy import LazyLayer
from .module import Module
from .normalization import RunningStatistics, SynchronizedStatistics
from .recurrent import RNNBase, RNNCellBase

# linear


class Linear(layers.Linear, Module): ...


class Bilinear(layers.Bilinear, Module): ...


class Identity(layers.Identity, Module): ...


# losses


class L1Loss(losses.L1Loss, Module): ...


class MSELoss(losses.MSELoss, Module): ...


class NLLLoss(losses.NLLLoss, Module): ...


class CrossEntropyLoss(losses.CrossEntropyLoss, Module): ...


class BCEWithLogitsLoss(losses.BCEWithLogitsLoss, Module): ...


class SmoothL1Loss(losses.SmoothL1Loss, Module): ...


class HuberLoss(losses.HuberLoss, Module): ...


class PoissonNLLLoss(losses.PoissonNLLLoss, Module): ...


class GaussianNLLLoss(losses.GaussianNLLLoss, Module): ...


class BCELoss(losses.BCELoss, Module): ...


class MultiLabelSoftMarginLoss(losses.MultiLabelSoftMarginLoss, Module): ...


class KLDivLoss(losses.KLDivLoss, Module): ...


class HingeEmbeddingLoss(losses.HingeEmbeddingLoss, Module): ...


class SoftMarginLoss(losses.SoftMarginLoss, Module): ...


class MarginRankingLoss(losses.MarginRankingLoss, Module): ...


class CosineEmbeddingLoss(losses.CosineEmbeddingLoss, Module): ...


class MultiMarginLoss(losses.MultiMarginLoss, Module): ...


class MultiLabelMarginLoss(losses.MultiLabelMarginLoss, Module): ...


class TripletMarginLoss(losses.TripletMarginLoss, Module): ...


class TripletMarginWithDistanceLoss(losses.TripletMarginWithDistanceLoss, Module): ...


class CTCLoss(losses.CTCLoss, Module): ...


class LinearCrossEntropyLoss(losses.LinearCrossEntropyLoss, Module): ...


class NLLLoss2d(losses.NLLLoss2d, Module): ...


# normalization


class GroupNorm(layers.GroupNorm, Module): ...


class RMSNorm(layers.RMSNorm, Module): ...


class LocalResponseNorm(layers.LocalResponseNorm, Module): ...


class CrossMapLRN2d(layers.CrossMapLRN2d, Module): ...


class LayerNorm(layers.LayerNorm, Module): ...


class BatchNorm1d(layers.BatchNorm1d, RunningStatistics): ...


class BatchNorm2d(layers.BatchNorm2d, RunningStatistics): ...


class BatchNorm3d(layers.BatchNorm3d, RunningStatistics): ...


class SyncBatchNorm(layers.SyncBatchNorm, SynchronizedStatistics): ...


class InstanceNorm1d(layers.InstanceNorm1d, RunningStatistics): ...


class InstanceNorm2d(layers.InstanceNorm2d, RunningStatistics): ...


class InstanceNorm3d(layers.InstanceNorm3d, RunningStatistics): ...


# shape


class PixelShuffle(layers.PixelShuffle, Module): ...


class PixelUnshuffle(layers.PixelUnshuffle, Module): ...


class ChannelShuffle(layers.ChannelShuffle, Module): ...


class Flatten(layers.Flatten, Module): ...


class Unflatten(layers.Unflatten, Module): ...


# conv


class Conv1d(layers.Conv1d, Module): ...


class Conv2d(layers.Conv2d, Module): ...


class Conv3d(layers.Conv3d, Module): ...


class ConvTranspose1d(layers.ConvTranspose1d, Module): ...


class ConvTranspose2d(layers.ConvTranspose2d, Module): ...


class ConvTranspose3d(layers.ConvTranspose3d, Module): ...


# padding


class ConstantPad1d(layers.ConstantPad1d, Module): ...


class ConstantPad2d(layers.ConstantPad2d, Module): ...


class ConstantPad3d(layers.ConstantPad3d, Module): ...


class ZeroPad1d(layers.ZeroPad1d, Module): ...


class ZeroPad2d(layers.ZeroPad2d, Module): ...


class ZeroPad3d(layers.ZeroPad3d, Module): ...


class ReflectionPad1d(layers.ReflectionPad1d, Module): ...


class ReflectionPad2d(layers.ReflectionPad2d, Module): ...


class ReflectionPad3d(layers.ReflectionPad3d, Module): ...


class ReplicationPad1d(layers.ReplicationPad1d, Module): ...


class ReplicationPad2d(layers.ReplicationPad2d, Module): ...


class ReplicationPad3d(layers.ReplicationPad3d, Module): ...


class CircularPad1d(layers.CircularPad1d, Module): ...


class CircularPad2d(layers.CircularPad2d, Module): ...


class CircularPad3d(layers.CircularPad3d, Module): ...


# fold


class Fold(layers.Fold, Module): ...


class Unfold(layers.Unfold, Module): ...


# pooling


class AdaptiveAvgPool1d(layers.AdaptiveAvgPool1d, Module): ...


class AdaptiveAvgPool2d(layers.AdaptiveAvgPool2d, Module): ...


class AdaptiveAvgPool3d(layers.AdaptiveAvgPool3d, Module): ...


class AdaptiveMaxPool1d(layers.AdaptiveMaxPool1d, Module): ...


class AdaptiveMaxPool2d(layers.AdaptiveMaxPool2d, Module): ...


class AdaptiveMaxPool3d(layers.AdaptiveMaxPool3d, Module): ...


class AvgPool1d(layers.AvgPool1d, Module): ...


class AvgPool2d(layers.AvgPool2d, Module): ...


class AvgPool3d(layers.AvgPool3d, Module): ...


class LPPool1d(layers.LPPool1d, Module): ...


class LPPool2d(layers.LPPool2d, Module): ...


class LPPool3d(layers.LPPool3d, Module): ...


class MaxPool1d(layers.MaxPool1d, Module): ...


class MaxPool2d(layers.MaxPool2d, Module): ...


class MaxPool3d(layers.MaxPool3d, Module): ...


# recurrent


class RNN(layers.RNN, RNNBase): ...


class LSTM(layers.LSTM, RNNBase): ...


class GRU(layers.GRU, RNNBase): ...


class RNNCell(layers.RNNCell, RNNCellBase): ...


class LSTMCell(layers.LSTMCell, RNNCellBase): ...


class GRUCell(layers.GRUCell, RNNCellBase): ...


# activation


class GELU(layers.GELU, Module): ...


class GLU(layers.GLU, Module): ...


class LogSigmoid(layers.LogSigmoid, Module): ...


class Mish(layers.Mish, Module): ...


class Sigmoid(layers.Sigmoid, Module): ...


class SiLU(layers.SiLU, Module): ...


class Softplus(layers.Softplus, Module): ...


class Softsign(layers.Softsign, Module): ...


class Tanh(layers.Tanh, Module): ...


class Tanhshrink(layers.Tanhshrink, Module): ...


# dropout


class AlphaDropout(layers.AlphaDropout, Module): ...


class Dropout(layers.Dropout, Module): ...


class Dropout1d(layers.Dropout1d, Module): ...


class Dropout2d(layers.Dropout2d, Module): ...


class Dropout3d(layers.Dropout3d, Module): ...


class FeatureAlphaDropout(layers.FeatureAlphaDropout, Module): ...


# embedding


class Embedding(layers.Embedding, Module): ...


class EmbeddingBag(layers.EmbeddingBag, Module): ...


# rectifier


class CELU(layers.CELU, Module): ...


class ELU(layers.ELU, Module): ...


class Hardshrink(layers.Hardshrink, Module): ...


class Hardsigmoid(layers.Hardsigmoid, Module): ...


class Hardswish(layers.Hardswish, Module): ...


class Hardtanh(layers.Hardtanh, Module): ...


class LeakyReLU(layers.LeakyReLU, Module): ...


class PReLU(layers.PReLU, Module): ...


class ReLU(layers.ReLU, Module): ...


class ReLU6(layers.ReLU6, Module): ...


class RReLU(layers.RReLU, Module): ...


class SELU(layers.SELU, Module): ...


class Softshrink(layers.Softshrink, Module): ...


class Threshold(layers.Threshold, Module): ...


# softmax


class LogSoftmax(layers.LogSoftmax, Module): ...


class Softmax(layers.Softmax, Module): ...


class Softmax2d(layers.Softmax2d, Module): ...


class Softmin(layers.Softmin, Module): ...


# resize


class Upsample(layers.Upsample, Module): ...


class UpsamplingNearest2d(layers.UpsamplingNearest2d, Module): ...


class UpsamplingBilinear2d(layers.UpsamplingBilinear2d, Module): ...


# distance


class PairwiseDistance(layers.PairwiseDistance, Module): ...


class CosineSimilarity(layers.CosineSimilarity, Module): ...


class FractionalMaxPool2d(layers.FractionalMaxPool2d, Module): ...


class FractionalMaxPool3d(layers.FractionalMaxPool3d, Module): ...


class MaxUnpool1d(layers.MaxUnpool1d, Module): ...


class MaxUnpool2d(layers.MaxUnpool2d, Module): ...


class MaxUnpool3d(layers.MaxUnpool3d, Module): ...


# attention


class NonDynamicallyQuantizableLinear(layers.attention.NonDynamicallyQuantizableLinear, Linear): ...


class MultiheadAttention(layers.MultiheadAttention, Module): ...


# lazy


class LazyLinear(layers.LazyLinear, LazyLayer, Linear): ...


class LazyConv1d(layers.LazyConv1d, LazyLayer, Conv1d): ...


class LazyConv2d(layers.LazyConv2d, LazyLayer, Conv2d): ...


class LazyConv3d(layers.LazyConv3d, LazyLayer, Conv3d): ...


class LazyConvTranspose1d(layers.LazyConvTranspose1d, LazyLayer, ConvTranspose1d): ...


class LazyConvTranspose2d(layers.LazyConvTranspose2d, LazyLayer, ConvTranspose2d): ...


class LazyConvTranspose3d(layers.LazyConvTranspose3d, LazyLayer, ConvTranspose3d): ...


class LazyBatchNorm1d(layers.LazyBatchNorm1d, LazyLayer, BatchNorm1d): ...


class LazyBatchNorm2d(layers.LazyBatchNorm2d, LazyLayer, BatchNorm2d): ...


class LazyBatchNorm3d(layers.LazyBatchNorm3d, LazyLayer, BatchNorm3d): ...


class LazyInstanceNorm1d(layers.LazyInstanceNorm1d, LazyLayer, InstanceNorm1d): ...


class LazyInstanceNorm2d(layers.LazyInstanceNorm2d, LazyLayer, InstanceNorm2d): ...


class LazyInstanceNorm3d(layers.LazyInstanceNorm3d, LazyLayer, InstanceNorm3d): ...
