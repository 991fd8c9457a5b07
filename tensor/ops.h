// The op list. Every group names one file in tensor/ops/: maths, backward, CPU and CUDA, samples.
// Shapes are PyTorch's; all ops accept f64, f32 and bf16 unless they say otherwise, throw Error
// with their name and the shapes, and are recorded for backward(). Reference: the PyTorch 2.x
// function of the same name, with the traps listed at each op.
#pragma once
#include "../autograd/autograd.h"
#include "random.h"

namespace pupil {

// activations.cc, unary.cc, silu.cc -- x -> y of the same shape and layout.
Tensor relu(const Tensor& x);  // gradient 0 at 0
Tensor exp(const Tensor& x);
Tensor log(const Tensor& x);
Tensor sqrt(const Tensor& x);     // gradient 0 at 0, so that a norm of a zero row has none
Tensor sigmoid(const Tensor& x);  // no overflow at |x| = 1e4
Tensor tanh(const Tensor& x);
Tensor abs(const Tensor& x);  // gradient 0 at 0
Tensor erf(const Tensor& x);
Tensor silu(const Tensor& x);                               // x sigmoid(x)
Tensor quick_gelu(const Tensor& x);                         // x sigmoid(1.702 x)
Tensor hard_swish(const Tensor& x);                         // x min(max(x + 3, 0), 6) / 6
Tensor softplus(const Tensor& x);                           // log(1 + e^x) without overflow
Tensor leaky_relu(const Tensor& x, double negative_slope);  // gradient negative_slope at 0
Tensor pow(const Tensor& x, double exponent);
Tensor square(const Tensor& x);
Tensor scale(const Tensor& x, double factor);            // factor * x
Tensor add_scalar(const Tensor& x, double summand);      // x + summand
Tensor clamp(const Tensor& x, double low, double high);  // passes the gradient at the bounds

// activations.cc -- one of them by its name.
Tensor activate(const Tensor& x, Activation);

// gelu.cc -- x * Phi(x) (Hendrycks and Gimpel 2016); tanh_form: 0.5x(1 + tanh(sqrt(2/pi)(x +
// 0.044715x^3))).
Tensor gelu(const Tensor& x, bool tanh_form = false);

// binary.cc -- NumPy broadcasting; gradients are summed back to each operand's shape.
Tensor add(const Tensor& a, const Tensor& b);
Tensor sub(const Tensor& a, const Tensor& b);
Tensor mul(const Tensor& a, const Tensor& b);
Tensor div(const Tensor& a, const Tensor& b);
Tensor maximum(const Tensor& a, const Tensor& b);  // half the gradient to each where they are equal
Tensor minimum(const Tensor& a, const Tensor& b);

// where.cc -- a where cond (i64) is not 0, else b; the three broadcast. What was not chosen reaches
// neither value nor gradient, be it NaN.
Tensor where(const Tensor& cond, const Tensor& a, const Tensor& b);

// reduce.cc -- over the given axes (all when empty). keep: the reduced axes stay with size 1.
Tensor sum(const Tensor& x, std::vector<int> axes = {}, bool keep = false);
Tensor mean(const Tensor& x, std::vector<int> axes = {}, bool keep = false);

// variance.cc -- over the given axes, divided by their number of elements - correction (1:
// unbiased, 0: population); the deviation of equal elements has gradient 0.
Tensor variance(const Tensor& x, std::vector<int> axes, double correction = 1, bool keep = false);
Tensor standard_deviation(const Tensor& x, std::vector<int> axes, double correction = 1,
                          bool keep = false);

// extreme.cc -- the largest and the smallest over the given axes (all when empty); equal ones share
// the gradient.
Tensor amax(const Tensor& x, std::vector<int> axes = {}, bool keep = false);
Tensor amin(const Tensor& x, std::vector<int> axes = {}, bool keep = false);

// logsumexp.cc -- log sum e^x over the given axes (all when empty). -inf entries are legal; nothing
// but -inf is an error.
Tensor logsumexp(const Tensor& x, std::vector<int> axes = {}, bool keep = false);

// cumsum.cc -- running sums along an axis.
Tensor cumsum(const Tensor& x, int axis);

// softmax.cc -- along the last axis, of x / temperature. -inf entries are legal; a row of only -inf
// is an error.
Tensor softmax(const Tensor& x, double temperature = 1);
Tensor log_softmax(const Tensor& x, double temperature = 1);

// cross_entropy.cc -- logits (n, classes), mean over rows. labels: i64 (n), values in [0, classes)
// or ignore_index, or target probabilities (n, classes). class_weight (classes), without a
// gradient: the mean divides by the sum of the labels' weights. Rows that are ignored count
// nowhere; the mean is NaN when all are. cross_entropy_rows: the terms of the sum, (n).
struct CrossEntropyOptions {
  double smoothing = 0;  // e: (1-e) target + e / classes
  int64_t ignore_index = -100;
  Tensor class_weight{};
};
Tensor cross_entropy(const Tensor& logits, const Tensor& target, const CrossEntropyOptions& = {});
Tensor cross_entropy_rows(const Tensor& logits, const Tensor& target,
                          const CrossEntropyOptions& = {});

// losses.cc -- x and target of one shape -> a scalar, or x's shape for `none`; f32 for bf16 inputs.
// A mean of no elements is an error. batch_mean: the sum divided by the size of the first axis.
enum class Reduction { mean, sum, none, batch_mean };
Tensor mse_loss(const Tensor& x, const Tensor& target, Reduction = Reduction::mean);
Tensor l1_loss(const Tensor& x, const Tensor& target, Reduction = Reduction::mean);
// h = |x - target|. Huber 1964: h^2 / 2 up to h = delta, then delta (h - delta / 2). smooth_l1
// (Girshick 2015): the same divided by delta = beta; beta 0 is l1.
Tensor huber_loss(const Tensor& x, const Tensor& target, double delta = 1,
                  Reduction = Reduction::mean);
Tensor smooth_l1_loss(const Tensor& x, const Tensor& target, double beta = 1,
                      Reduction = Reduction::mean);
// t (log t - log_p), 0 log 0 = 0, whose gradient at t = 0 is -inf; log_target: e^t (t - log_p).
// `mean` divides by the number of elements, batch_mean by the number of rows.
Tensor kl_div(const Tensor& log_p, const Tensor& target, bool log_target = false,
              Reduction = Reduction::mean);
// target: probabilities, max(x, 0) - x t + log(1 + e^-|x|).
Tensor bce_with_logits(const Tensor& logits, const Tensor& target, Reduction = Reduction::mean);
// -log_p[i, label i] of (n, classes); labels i64 (n), read on the host.
Tensor nll_loss(const Tensor& log_p, const Tensor& labels, Reduction = Reduction::mean);

// distance.cc -- cosine_similarity: a b / (max(|a|, eps) max(|b|, eps)) along an axis of the common
// (broadcast) shape. cdist: a (..., p, d), b (..., r, d) -> distances (..., p, r) of the 1-norm or
// the 2-norm, gradient 0 at distance 0; needs memory for p r d differences.
Tensor cosine_similarity(const Tensor& a, const Tensor& b, int axis, double eps = 1e-8);
Tensor cdist(const Tensor& a, const Tensor& b, double p = 2);

// matmul.cc -- (..., m, k) x (..., k, n); broadcast batch axes; ta, tb transpose the last two axes.
Tensor matmul(const Tensor& a, const Tensor& b, bool ta = false, bool tb = false);

// einsum.cc -- of two operands, "bhqd,bhkd->bhqk": letters, none twice in one operand, the output
// written.
Tensor einsum(const std::string& equation, const Tensor& a, const Tensor& b);

// linear, conv2d, batch_norm, layer_norm and embed_tokens take bf16 inputs with f32 parameters too:
// a product rounds the weights, sums are f32, and the parameters' gradients are never rounded.

// linear.cc -- y = x W^T + b + residual for x (..., in), weight (out, in), bias (out) or empty
// Tensor(); residual as y, or empty.
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias,
              const Tensor& residual = {});

// mlp.cc -- linear(activate(linear(x, weight1, bias1)), weight2, bias2, residual); biases and
// residual may be empty. On the CPU the activation, its gradient, the residual and the sums of the
// biases' gradients are done on rows that still lie in the cache.
Tensor mlp(const Tensor& x, const Tensor& weight1, const Tensor& bias1, Activation,
           const Tensor& weight2, const Tensor& bias2, const Tensor& residual = {});

// conv2d.cc -- cross-correlation; x (n, c, h, w), weight (out, c/groups, kh, kw), bias (out) or
// empty. Output side floor((h + 2 pad - dilation (kh-1) - 1) / stride) + 1. On the float32 CPU path
// the output is in an image layout (the layout of x, or the trunk's when x is strided).
struct Pair {  // along height and along width; one number means both
  int h, w;
  Pair(int both) : h(both), w(both) {}
  Pair(int h, int w) : h(h), w(w) {}
  bool operator==(const Pair&) const = default;
};
struct ConvOptions {
  Pair stride = 1, padding = 0, dilation = 1;
  int groups = 1;
  // Changes no value: the result lies in nhwc also where blocks of 16 channels would be faster,
  // since a depthwise layer will read it.
  bool channels_last = false;
};
Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvOptions& = {});

// conv_transpose2d.cc -- the adjoint of conv2d: x (n, c, h, w), weight (c, out/groups, kh, kw),
// bias (out) or empty. Output side (h - 1) stride - 2 padding + dilation (kh - 1) + output_padding
// + 1; output_padding is smaller than stride or dilation. Row-major.
Tensor conv_transpose2d(const Tensor& x, const Tensor& weight, const Tensor& bias,
                        const ConvOptions& = {}, Pair output_padding = 0);

// unfold.cc -- the windows of x (n, c, h, w) as columns (n, c kh kw, windows), channel first, then
// kernel row and column; windows row by row. fold, its adjoint, adds columns into an image of
// `size`.
struct WindowOptions {
  Pair kernel = 1, dilation = 1, padding = 0, stride = 1;
};
Tensor unfold(const Tensor& x, const WindowOptions&);
Tensor fold(const Tensor& columns, Pair size, const WindowOptions&);

// pixel_shuffle.cc -- (..., c r^2, h, w) -> (..., c, r h, r w), channel c r^2 + row r + column; and
// back. Shi et al. 2016.
Tensor pixel_shuffle(const Tensor& x, int r);
Tensor pixel_unshuffle(const Tensor& x, int r);

// batch_norm.cc -- Ioffe and Szegedy 2015. x (n, c, ...), running_mean, running_var (c), weight and
// bias (c) or both empty. Training uses the biased batch variance and moves the running values by
// `momentum` towards the batch's (unbiased variance); evaluation treats the running values as
// constants. Then + residual (if given) and the activation, whose relu and relu6 pass no gradient
// at their bounds: the tail of a block in one pass.
struct BatchNormOptions {
  bool train = false;
  double momentum = 0.1, eps = 1e-5;
  Activation activation = Activation::none;
  Tensor residual;  // same shape and layout as x
};
Tensor batch_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor& running_mean,
                  Tensor& running_var, const BatchNormOptions& = {});

// layer_norm.cc -- over the last axis; weight, bias (c) or both empty. eps inside the root, biased
// variance.
Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps);

// group_norm.cc -- x (n, c, ...), statistics per sample and group of c / groups channels, over
// channels and pixels; weight and bias (c), each may be empty. Wu and He 2018.
Tensor group_norm(const Tensor& x, int groups, const Tensor& weight, const Tensor& bias,
                  double eps = 1e-5);

// attention.cc -- softmax(q k^T * scale + mask) v for q (batch, heads, tokens, head_dim), k, v
// (batch, heads, sources, ...). mask: additive, without a gradient, broadcast to (batch, heads,
// tokens, sources), or empty; causal keeps source <= token. A row without any source is an error.
// qkv_attention: the same from one packed projection qkv (batch, tokens, 3 * heads * head_dim) in
// the order q, k, v -> (batch, tokens, heads * head_dim), scale head_dim^-1/2. Vaswani et al. 2017.
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                 const Tensor& mask = {}, bool causal = false);
Tensor qkv_attention(const Tensor& qkv, int heads);

// pool2d.cc and global_avg_pool.cc -- x (n, c, h, w) in any layout. Padding is -inf for the
// maximum, whose first of ties takes the gradient, and 0 for the average. ceil_mode: a last window
// may reach beyond the padding, but must start inside the image or its leading padding. Divisor of
// the average: the window's positions inside image and padding, or inside the image alone.
struct PoolOptions {
  Pair kernel = 2, stride = 2, padding = 0, dilation = 1;  // dilation: max_pool2d only
  bool ceil_mode = false, count_include_pad = true;
};
Tensor max_pool2d(const Tensor& x, const PoolOptions&);
Tensor avg_pool2d(const Tensor& x, const PoolOptions&);
Tensor global_avg_pool(const Tensor& x);  // -> (n, c), strided

// adaptive_max_pool2d.cc and resample.cc -- cell i of n takes pixels floor(i h / n) ..
// ceil((i + 1) h / n); the first of ties takes the gradient of the maximum. Row-major.
Tensor adaptive_max_pool2d(const Tensor& x, Pair cells);
Tensor adaptive_avg_pool2d(const Tensor& x, Pair cells);

// shortcut.cc -- the parameter-free "option A" shortcut of CIFAR ResNets (He et al. 2015,
// section 4.2): every `stride`-th pixel, channels padded with zeros on both sides to out_channels.
Tensor shortcut_a(const Tensor& x, int stride, int64_t out_channels);

// shape.cc and join.cc -- views and joins; gradients go back to where values came from.
Tensor view(const Tensor& x, const Shape&);
Tensor permute(const Tensor& x, std::vector<int> order);
Tensor slice(const Tensor& x, int axis, int64_t begin, int64_t end, int64_t step = 1);
Tensor cat(const std::vector<Tensor>& parts, int axis);    // empty parts are legal
Tensor expand(const Tensor& x, const Shape&);              // broadcast
Tensor stack(const std::vector<Tensor>& parts, int axis);  // equal shapes along a new axis
Tensor roll(const Tensor& x, const std::vector<int64_t>& shifts, const std::vector<int>& axes);
Tensor flip(const Tensor& x, const std::vector<int>& axes);
Tensor to_strided(const Tensor& x);  // an image layout back to plain strides
Tensor to_dtype(const Tensor& x, DType);

// index.cc, gather.cc, embedding.cc -- index: i64, checked on the host only where it lies there.
// x[.., index (n), ..] along an axis; src added to x at such places; element by element for gather
// and scatter_add, whose index may be smaller than x on the other axes. Gradients of repeated
// places add, in a fixed order.
Tensor index_select(const Tensor& x, const Tensor& index, int axis = 0);
Tensor index_add(const Tensor& x, int axis, const Tensor& index, const Tensor& src);
Tensor gather(const Tensor& x, int axis, const Tensor& index);
Tensor scatter_add(const Tensor& x, int axis, const Tensor& index, const Tensor& src);
// Rows of weight (v, d) -> (index's shape, d); row padding_index gets no gradient.
Tensor embedding(const Tensor& weight, const Tensor& index,
                 std::optional<int64_t> padding_index = {});
Tensor one_hot(const Tensor& index, int64_t classes, DType = DType::f32);

// sort.cc -- along an axis, stable; NaN counts as the largest. topk: the k largest, largest first.
// argmax: i64, the first of equals.
struct Sorted {
  Tensor values, indices;
};
Sorted sort(const Tensor& x, int axis, bool descending = false);
Sorted topk(const Tensor& x, int64_t k, int axis = -1);
Tensor argmax(const Tensor& x, int axis);

// pad.cc -- amounts: before and behind the last axis, then the one before it ..; negative ones
// crop. reflect: without the edge itself, less than the axis is long.
enum class Border { constant, reflect, replicate };
Tensor pad(const Tensor& x, const std::vector<int64_t>& amounts, Border = Border::constant,
           double value = 0);

// patches.cc -- images (n, c, h, w) cut into squares of `side` pixels, row by row:
// (n, (h/side)(w/side), c*side*side), inside a patch in the order c, y, x.
Tensor patches(const Tensor& images, int side);

// embed_tokens.cc -- [class token, patches] + positions: patches (n, t, d), class_token (1, 1, d)
// or empty, positions (1, t + 1, d) or (1, t, d) -> (n, t + 1, d) or (n, t, d).
Tensor embed_tokens(const Tensor& patches, const Tensor& class_token, const Tensor& positions);

// dropout.cc -- y = x * mask / (1-p); the mask is drawn from `key` and never stored. p in [0, 1).
Tensor dropout(const Tensor& x, double p, RngKey key);
Tensor drop_path(const Tensor& x, double p, RngKey key);  // one decision per sample (axis 0)

// The same with a given mask of zeros and ones: of x's shape, and of the n samples. scale_by_keep
// false: no division by 1-p.
Tensor dropout(const Tensor& x, double p, const Tensor& mask);
Tensor drop_path(const Tensor& x, double p, const Tensor& mask, bool scale_by_keep = true);

// normalize.cc -- rows x / max(|x|_2, eps) along the last axis. A zero row gives 0.
Tensor normalize(const Tensor& x, double eps = 1e-12);

// resample.cc -- bicubic (a = -0.5) with antialias, align_corners false, of position embeddings
// (1, prefix + h w, dim) -> (1, prefix + h2 w2, dim); prefix rows are kept. timm
// resample_abs_pos_embed.
// interpolate: x (n, c, h, w) -> (n, c, h', w') by size or by scale (then h' = floor(h scale), and
// 1 / scale counts for the coordinates instead of h / h'). nearest: pixel floor(i h / h');
// nearest_exact: floor((i + 1/2) h / h'). bilinear, bicubic (a = -0.75): coordinate
// (i + 1/2) h / h' - 1/2, or i (h - 1) / (h' - 1) with align_corners. antialias: a filter
// (triangle; bicubic with a = -0.5) as wide as the image shrinks. Row-major.
struct InterpolateOptions {
  enum class Mode { nearest, nearest_exact, bilinear, bicubic };
  Mode mode = Mode::nearest;
  Pair size = 0;                    // 0: by scale
  double scale_h = 0, scale_w = 0;  // 0: by size
  bool align_corners = false, antialias = false;
};
Tensor interpolate(const Tensor& x, const InterpolateOptions&);
Tensor resample_pos_embed(const Tensor& embed, int prefix, int h, int w, int new_h, int new_w);

}  // namespace pupil
