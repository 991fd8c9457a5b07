#include "../../autograd/samples.h"
#include "../launch.h"
#include "batch_norm_fast.h"
#include "broadcast.h"
#include "image.h"

namespace pupil {

// One team per channel of x (n, c, inner), two passes: mean, then the mean squared distance from
// it.
template <class T>
struct BatchStatistics {
  using A = acc_t<T>;
  const T* x;
  A *mean, *inverse_std;
  T *running_mean, *running_var;
  int64_t batch, channels, inner;
  A momentum, eps;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t c) const {
    int64_t count = batch * inner;
    auto at = [&](int64_t i) { return A(x[(i / inner * channels + c) * inner + i % inner]); };
    A m = team.reduce(count, A(0), Add{}, at) / A(count);
    A squares = team.reduce(count, A(0), Add{}, [&](int64_t i) {
      A d = at(i) - m;
      return d * d;
    });
    team.each(1, [&](int64_t) {
      mean[c] = m;
      inverse_std[c] = A(1) / sqrt(squares / A(count) + eps);
      A unbiased = squares / A(count > 1 ? count - 1 : 1);
      running_mean[c] = T((A(1) - momentum) * A(running_mean[c]) + momentum * m);
      running_var[c] = T((A(1) - momentum) * A(running_var[c]) + momentum * unbiased);
    });
  }
};

template <class T>
struct RunningStatistics {
  using A = acc_t<T>;
  const T *running_mean, *running_var;
  A *mean, *inverse_std;
  A eps;
  PUPIL_HD void operator()(int64_t c) const {
    mean[c] = A(running_mean[c]);
    inverse_std[c] = A(1) / sqrt(A(running_var[c]) + eps);
  }
};

template <class T>
struct BatchNormForward {
  using A = acc_t<T>;
  const T *x, *weight, *bias;
  const A *mean, *inverse_std;
  T* y;
  int64_t channels, inner;
  PUPIL_HD void operator()(int64_t i) const {
    int64_t c = i / inner % channels;
    A normalized = (A(x[i]) - mean[c]) * inverse_std[c];
    y[i] = T(weight ? normalized * A(weight[c]) + A(bias[c]) : normalized);
  }
};

// Ioffe and Szegedy 2015, the gradients at the end of section 3. In evaluation mode mean and
// variance are constants and only the scale is left.
template <class T>
struct BatchNormBackward {
  using A = acc_t<T>;
  const T *x, *weight, *gy;
  const A *mean, *inverse_std;
  T *gx, *gweight, *gbias;
  int64_t batch, channels, inner;
  float weight_beta, bias_beta;
  bool train;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t c) const {
    int64_t count = batch * inner;
    A m = mean[c], s = inverse_std[c];
    auto at = [&](int64_t i) { return (i / inner * channels + c) * inner + i % inner; };
    A sum = team.reduce(count, A(0), Add{}, [&](int64_t i) { return A(gy[at(i)]); });
    A dot = team.reduce(count, A(0), Add{},
                        [&](int64_t i) { return A(gy[at(i)]) * (A(x[at(i)]) - m) * s; });
    if (gx) {
      A scale = weight ? A(weight[c]) * s : s;
      A sum_share = train ? sum / A(count) : A(0), dot_share = train ? dot / A(count) : A(0);
      team.each(count, [&](int64_t i) {
        A normalized = (A(x[at(i)]) - m) * s;
        gx[at(i)] = T(scale * (A(gy[at(i)]) - sum_share - normalized * dot_share));
      });
    }
    team.each(1, [&](int64_t) {
      if (gweight) gweight[c] = T(weight_beta == 0 ? dot : dot + A(weight_beta) * A(gweight[c]));
      if (gbias) gbias[c] = T(bias_beta == 0 ? sum : sum + A(bias_beta) * A(gbias[c]));
    });
  }
};

namespace {

void check(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& running_mean,
           const Tensor& running_var, const BatchNormOptions& options) {
  require_floating("batch_norm", x);
  PUPIL_CHECK(x.rank() >= 2, "batch_norm: (n, c, ...) expected, got ", x.shape());
  PUPIL_CHECK(bool(weight) == bool(bias), "batch_norm: weight and bias, or neither");
  for (const Tensor* p : {&weight, &bias, &running_mean, &running_var})
    PUPIL_CHECK(!*p || (p->rank() == 1 && p->dim(0) == x.dim(1) && p->is_contiguous() &&
                        p->dtype() == running_mean.dtype() &&
                        (p->dtype() == x.dtype() || p->dtype() == acc_dtype(x.dtype()))),
                "batch_norm: ", p->shape(), " ", name_of(p->dtype()), " for x ", x.shape(), " ",
                name_of(x.dtype()));
  int64_t per_channel = x.dim(1) ? x.numel() / x.dim(1) : 0;
  PUPIL_CHECK(!options.train || per_channel > 1,
              "batch_norm: training needs more than one value per channel, got x ", x.shape());
  PUPIL_CHECK(!options.residual || options.residual.shape() == x.shape(), "batch_norm: residual ",
              options.residual.shape(), " for x ", x.shape());
}

Tensor batch_norm_plain(const Tensor& input, const Tensor& weight, const Tensor& bias,
                        Tensor& running_mean, Tensor& running_var,
                        const BatchNormOptions& options) {
  Tensor x = input.contiguous().detach(), y = empty(x.shape(), x.dtype(), x.device());
  int64_t batch = x.dim(0), channels = x.dim(1), inner = 1;
  for (int d = 2; d < x.rank(); d++) inner *= x.dim(d);
  Tensor mean = empty({channels}, acc_dtype(x.dtype()), x.device()), inverse_std = empty_like(mean);
  dispatch(x.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    if (options.train)
      rows(x.device(), channels,
           BatchStatistics<T>{x.data<T>(), mean.data<A>(), inverse_std.data<A>(),
                              running_mean.data<T>(), running_var.data<T>(), batch, channels, inner,
                              A(options.momentum), A(options.eps)},
           batch * inner);
    else
      map(x.device(), channels,
          RunningStatistics<T>{running_mean.data<T>(), running_var.data<T>(), mean.data<A>(),
                               inverse_std.data<A>(), A(options.eps)});
    map(x.device(), x.numel(),
        BatchNormForward<T>{x.data<T>(), weight ? weight.data<T>() : nullptr,
                            bias ? bias.data<T>() : nullptr, mean.data<A>(), inverse_std.data<A>(),
                            y.data<T>(), channels, inner});
  });
  Layout layout = input.layout();
  y = y.to(layout);
  bool train = options.train;
  Tensor w = weight ? weight.detach() : weight;
  std::vector<Tensor> inputs{input};
  if (weight) inputs.insert(inputs.end(), {weight, bias});
  const Attributes said{
      {"mean", running_mean}, {"variance", running_var}, {"eps", options.eps}, {"relu", 0}};
  y = record("batch_norm", y, inputs, said, [=](Backward& grad) {
    Tensor gy = grad.gy.contiguous(), gx, gweight, gbias;
    float weight_beta = 0, bias_beta = 0;
    bool affine = grad.inputs.size() > 1;
    if (grad[0].needed) gx = empty(x.shape(), x.dtype(), x.device());
    if (affine && grad[1].needed) gweight = grad[1].into(weight_beta);
    if (affine && grad[2].needed) gbias = grad[2].into(bias_beta);
    dispatch(gy.dtype(), [&](auto t) {
      using T = typename decltype(t)::type;
      using A = acc_t<T>;
      rows(gy.device(), channels,
           BatchNormBackward<T>{x.data<T>(), w ? w.data<T>() : nullptr, gy.data<T>(),
                                mean.data<A>(), inverse_std.data<A>(), gx ? gx.data<T>() : nullptr,
                                gweight ? gweight.data<T>() : nullptr,
                                gbias ? gbias.data<T>() : nullptr, batch, channels, inner,
                                weight_beta, bias_beta, train},
           batch * inner);
    });
    if (affine && !grad[1].needed) grad[1].none();
    if (affine && !grad[2].needed) grad[2].none();
    if (gx)
      grad[0].give(gx.to(layout));
    else
      grad[0].none();
  });
  if (options.residual) y = add(y, options.residual);
  return activate(y, options.activation);
}

template <class T>
Tensor batch_norm_fast(const Tensor& input, const Tensor& weight, const Tensor& bias,
                       Tensor& running_mean, Tensor& running_var, const BatchNormOptions& options) {
  Tensor x = input.detach(), y = empty_like(x);
  ChannelBlocks blocks(x);
  int64_t channels = blocks.channels;
  Tensor mean = empty({channels}), inverse_std = empty({channels}), scale = empty({channels});
  float *m = mean.data<float>(), *s = inverse_std.data<float>(), *factor = scale.data<float>();
  float *running_m = running_mean.data<float>(), *running_v = running_var.data<float>();
  std::vector<double> exact_mean(running_m, running_m + channels),
      variance(running_v, running_v + channels);
  if (options.train) {
    channel_moments(blocks, x.data<T>(), exact_mean.data(), variance.data());
    double unbiased = double(blocks.rows) / double(blocks.rows - 1), move = options.momentum;
    for (int64_t c = 0; c < channels; c++) {
      double new_mean = exact_mean[size_t(c)], new_variance = variance[size_t(c)] * unbiased;
      running_m[c] = float((1 - move) * double(running_m[c]) + move * new_mean);
      running_v[c] = float((1 - move) * double(running_v[c]) + move * new_variance);
    }
  }
  for (int64_t c = 0; c < channels; c++) {
    m[c] = float(exact_mean[size_t(c)]);
    s[c] = float(1 / std::sqrt(variance[size_t(c)] + options.eps));
    factor[c] = weight ? weight.data<float>()[c] * s[c] : s[c];
  }
  Tensor shift = bias ? bias.detach() : zeros({channels}), residual;
  if (options.residual) residual = in_layout(options.residual.detach(), x.layout());
  channel_apply<T>(blocks, {x.data<T>(), residual ? residual.data<T>() : nullptr, m, factor,
                            shift.data<float>(), options.activation, y.data<T>()});
  std::vector<Tensor> inputs{input};
  if (weight) inputs.insert(inputs.end(), {weight, bias});
  if (residual) inputs.push_back(options.residual);
  // Where a ReLU follows the residual, its output says where; else the norm's input does.
  bool rectified = options.activation == Activation::relu;
  Tensor output = rectified && residual ? y.detach() : Tensor();
  Activation again = residual ? Activation::none : options.activation;
  if (again == Activation::none) shift = Tensor();  // not read again
  bool train = options.train, affine = bool(weight), has_residual = bool(residual);
  Layout residual_layout = residual ? options.residual.layout() : x.layout();
  const Attributes said{
      {"mean", running_mean}, {"variance", running_var}, {"eps", options.eps}, {"relu", rectified}};
  return record("batch_norm", y, inputs, said, [=](Backward& grad) {
    Tensor gy = in_layout(grad.gy, x.layout()), gx;
    grad.gy = Tensor();
    bool to_residual = has_residual && grad.inputs.back().needed;
    bool stores = to_residual && output;  // the masked gradient is what the residual gets
    if (grad[0].needed) gx = gy.sole_owner() && !to_residual ? gy : empty_like(gy);
    Tensor masked = !stores || gy.sole_owner() ? gy : empty_like(gy);
    ActivationGradient<T> activation{output ? output.data<T>() : nullptr, again,
                                     scale.data<float>(), shift ? shift.data<float>() : nullptr};
    std::vector<double> sum(size_t(channels), 0.0), dot(sum);
    channel_sums<T>(blocks, {x.data<T>(), gy.data<T>(), mean.data<float>(), activation,
                             stores ? masked.data<T>() : nullptr, sum.data(), dot.data()});
    const float *s = inverse_std.data<float>(), *factor = scale.data<float>();
    if (affine) {
      for (int which : {1, 2}) {
        if (!grad[which].needed) {
          grad[which].none();
          continue;
        }
        float beta;
        Tensor to = grad[which].into(beta);
        float* g = to.data<float>();
        for (int64_t c = 0; c < channels; c++) {
          size_t i = size_t(c);
          g[c] = float(which == 1 ? dot[i] * double(s[c]) : sum[i]) + (beta == 0 ? 0 : g[c]);
        }
      }
    }
    if (gx) {
      std::vector<float> offset(size_t(channels), 0.0f), slope(offset);
      for (int64_t c = 0; train && c < channels; c++) {
        double share = double(factor[c]) / double(blocks.rows);
        offset[size_t(c)] = float(share * sum[size_t(c)]);
        slope[size_t(c)] = float(share * dot[size_t(c)] * double(s[c]) * double(s[c]));
      }
      if (stores) activation.y = nullptr;
      channel_gradient<T>(blocks, {x.data<T>(), masked.data<T>(), mean.data<float>(), activation,
                                   offset.data(), slope.data(), gx.data<T>()});
      grad[0].give(gx);
    } else
      grad[0].none();
    if (to_residual)
      grad.inputs.back().give(in_layout(masked, residual_layout));
    else if (has_residual)
      grad.inputs.back().none();
  });
}

}  // namespace

Tensor batch_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor& running_mean,
                  Tensor& running_var, const BatchNormOptions& options) {
  check(x, weight, bias, running_mean, running_var, options);
  DType kept = running_mean.dtype();  // of statistics and parameters
  bool fast =
      kept == DType::f32 && cpu_fast(kept, x.device()) && has_channel_blocks(x) && x.numel() > 0;
  if (!fast && kept != x.dtype()) {
    BatchNormOptions wide = options;
    if (options.residual) wide.residual = to_dtype(options.residual, kept);
    return to_dtype(batch_norm(to_dtype(x, kept), weight, bias, running_mean, running_var, wide),
                    x.dtype());
  }
  Activation last = options.activation;
  bool fused =
      fast && options.train && !options.residual &&
      (last == Activation::relu6 || last == Activation::hard_swish || last == Activation::silu);
  if (!fused && last != Activation::none && last != Activation::relu) {
    BatchNormOptions first = options;
    first.activation = Activation::none;
    return activate(batch_norm(x, weight, bias, running_mean, running_var, first), last);
  }
  auto norm = !fast                      ? batch_norm_plain
              : x.dtype() == DType::bf16 ? batch_norm_fast<bf16>
                                         : batch_norm_fast<float>;
  return norm(x, weight, bias, running_mean, running_var, options);
}

PUPIL_SAMPLES(batch_norm) {
  // v: x, weight, bias and, for residual blocks, a residual of x's shape
  using A = Activation;
  auto with = [](bool train, A activation) {
    return [=](auto& v) {
      int64_t c = v[0].dim(1);
      std::vector<double> mean(size_t(c), 0.25), var(size_t(c), 1.5);
      Tensor running_mean = from(mean, {c}, v[0].dtype()).to(v[0].device());
      Tensor running_var = from(var, {c}, v[0].dtype()).to(v[0].device());
      BatchNormOptions options{train, 0.1, 1e-5, activation, v.size() > 3 ? v[3] : Tensor()};
      Tensor y = batch_norm(v[0], v.size() > 1 ? v[1] : Tensor(), v.size() > 1 ? v[2] : Tensor(),
                            running_mean, running_var, options);
      return to_strided(y);
    };
  };
  for (bool train : {true, false}) {
    std::string mode = train ? "train " : "eval ";
    s.add(mode + "matrix", {{6, 3}, {3}, {3}}, with(train, A::none));
    s.add(mode + "image", {{3, 4, 5, 2}, {4}, {4}}, with(train, A::none));
    s.add(mode + "16 channels", {{3, 32, 5, 3}, {32}, {32}}, with(train, A::none));
    s.add(mode + "not affine", {{3, 4, 5, 2}}, with(train, A::none));
    s.add(mode + "relu", {{3, 4, 5, 2}, {4}, {4}}, with(train, A::relu));
    s.add(mode + "residual relu", {{3, 4, 5, 2}, {4}, {4}, {3, 4, 5, 2}}, with(train, A::relu),
          {.bf16 = false});  // bf16 takes the other side of a kink
    s.add(mode + "residual", {{3, 4, 5}, {4}, {4}, {3, 4, 5}}, with(train, A::none));
  }
  // Values on both sides of every kink, none near one; bf16 takes the other side.
  for (A last : {A::relu6, A::hard_swish, A::silu, A::gelu})
    for (bool train : {true, false}) {
      std::string name = concat(train ? "train " : "eval ", int(last));
      s.add(name, {{7, 19}, {19}, {19}}, with(train, last), {-8, 8, false});
      s.add(name + " residual", {{7, 3}, {3}, {3}, {7, 3}}, with(train, last), {-8, 8, false});
      s.add(name + " after conv2d", {{2, 3, 6, 5}, {32, 3, 3, 3}, {32}, {32}},
            [=](auto& v) {
              std::vector<Tensor> inputs{conv2d(v[0], v[1], Tensor(), {1, 1}), v[2], v[3]};
              return with(train, last)(inputs);
            },
            {-5, 5, false});
    }
  // On the float32 path of the CPU a convolution's output is in an image layout. Not in bf16: a
  // rounding flips a ReLU.
  for (int64_t channels : {32, 20})
    s.add(concat("after conv2d ", channels),
          {{2, 3, 6, 5}, {channels, 3, 3, 3}, {channels}, {channels}},
          [=](auto& v) {
            Tensor y = conv2d(v[0], v[1], Tensor(), {1, 1});
            std::vector<Tensor> inputs{y, v[2], v[3], y};
            return with(true, A::relu)(inputs);
          },
          {-1, 1, false});
  s.add("two values", {{2, 1}, {1}, {1}}, with(true, A::none), {-1, 1, false});  // gradients cancel
  s.add("empty batch", {{0, 3, 2, 2}, {3}, {3}}, with(false, A::relu));
  s.add_error("one value", {{1, 3}, {3}, {3}}, with(true, A::none));
  s.add_error("channels", {{4, 3}, {4}, {4}}, with(true, A::none));
  s.add_error("residual", {{4, 3}, {3}, {3}, {4, 1}}, with(true, A::none));
}

}  // namespace pupil
