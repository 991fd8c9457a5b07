#include "../../autograd/samples.h"
#include "../launch.h"
#include "broadcast.h"
#include "gemm.h"

namespace pupil {

// Ba et al. 2016 (arXiv 1607.06450), eq. 4 over the last axis.
template <class T, class P = T>
struct LayerNormForward {
  using A = acc_t<T>;
  const T* x;
  const P *weight, *bias;
  T* y;
  A *mean, *inverse_std;
  int64_t x_stride, columns;
  A eps;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    const T* p = x + row * x_stride;
    A m = team.reduce(columns, A(0), Add{}, [&](int64_t j) { return A(p[j]); }) / A(columns);
    A squares = team.reduce(columns, A(0), Add{}, [&](int64_t j) {
      A d = A(p[j]) - m;
      return d * d;
    });
    A s = A(1) / sqrt(squares / A(columns) + eps);
    team.each(columns, [&](int64_t j) {
      A normalized = (A(p[j]) - m) * s;
      y[row * columns + j] = T(weight ? normalized * A(weight[j]) + A(bias[j]) : normalized);
    });
    team.each(1, [&](int64_t) {
      mean[row] = m;
      inverse_std[row] = s;
    });
  }
};

template <class T, class P = T>
struct LayerNormInputGradient {
  using A = acc_t<T>;
  const T* x;
  const P* weight;
  const T* gy;
  T* gx;
  const A *mean, *inverse_std;
  int64_t x_stride, columns;
  A beta;  // 1: add to what gx holds, the gradient of the residual path
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    const T *p = x + row * x_stride, *g = gy + row * columns;
    A m = mean[row], s = inverse_std[row];
    auto slope = [&](int64_t j) { return weight ? A(g[j]) * A(weight[j]) : A(g[j]); };
    A sum = team.reduce(columns, A(0), Add{}, slope) / A(columns);
    A dot = team.reduce(columns, A(0), Add{}, [&](int64_t j) {
      return slope(j) * (A(p[j]) - m) * s;
    }) / A(columns);
    team.each(columns, [&](int64_t j) {
      T& to = gx[row * columns + j];
      A change = s * (slope(j) - sum - (A(p[j]) - m) * s * dot);
      to = T(beta == 0 ? change : beta * A(to) + change);
    });
  }
};

template <class A>
struct WeightAndBias {
  A weight = 0, bias = 0;
  PUPIL_HD WeightAndBias operator+(const WeightAndBias& other) const {
    return {weight + other.weight, bias + other.bias};
  }
};

template <class T, class P = T>
struct LayerNormParameterGradient {
  using A = acc_t<T>;
  using Sum = WeightAndBias<A>;
  const T *x, *gy;
  P *gweight, *gbias;
  const A *mean, *inverse_std;
  int64_t x_stride, columns;
  float weight_beta, bias_beta;
  PUPIL_HD Sum value(int64_t row, int64_t j) const {
    A g = A(gy[row * columns + j]);
    return {g * (A(x[row * x_stride + j]) - mean[row]) * inverse_std[row], g};
  }
  PUPIL_HD void store(int64_t j, Sum sum) const {
    if (gweight)
      gweight[j] = P(weight_beta == 0 ? sum.weight : sum.weight + A(weight_beta) * A(gweight[j]));
    if (gbias) gbias[j] = P(bias_beta == 0 ? sum.bias : sum.bias + A(bias_beta) * A(gbias[j]));
  }
};

namespace {

// float32 and bf16 with float32 parameters on the CPU. A sum over a row runs in vector lanes, in
// the same order every time.
template <class T>
void cpu_forward(const LayerNormForward<T, float>& k, int64_t count) {
  parallel_for<Vectors::widest>(count, count * k.columns, [k, n = k.columns](int64_t row) {
    const T* x = k.x + row * k.x_stride;
    T* y = k.y + row * n;
    float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) sum += float(x[j]);
    float mean = sum / float(n);
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < n; j++) squares += (float(x[j]) - mean) * (float(x[j]) - mean);
    float s = 1 / std::sqrt(squares / float(n) + k.eps);
    if (k.weight) {
#pragma omp simd
      for (int64_t j = 0; j < n; j++) y[j] = T((float(x[j]) - mean) * s * k.weight[j] + k.bias[j]);
    } else {
#pragma omp simd
      for (int64_t j = 0; j < n; j++) y[j] = T((float(x[j]) - mean) * s);
    }
    k.mean[row] = mean;
    k.inverse_std[row] = s;
  });
}

// Both gradients in one pass over x and gy. Rows are cut into parts whatever the thread count; each
// part sums the parameter gradients of its rows, in f64 between parts. k.gx may be null.
template <class T>
void cpu_backward(const LayerNormInputGradient<T, float>& k,
                  const LayerNormParameterGradient<T, float>& parameters, int64_t count) {
  int64_t n = k.columns, parts = std::min<int64_t>(32, (count + 15) / 16);
  std::vector<float> partial(size_t(parts * 2 * n));
  parallel_for<Vectors::widest>(parts, count * n, [=, sums = partial.data()](int64_t part) {
    float *weight_sum = sums + part * 2 * n, *bias_sum = weight_sum + n;
    for (int64_t row = count * part / parts; row < count * (part + 1) / parts; row++) {
      const T *x = k.x + row * k.x_stride, *g = k.gy + row * n;
      float mean = k.mean[row], s = k.inverse_std[row], sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
      for (int64_t j = 0; j < n; j++) {
        float normalized = (float(x[j]) - mean) * s, given = float(g[j]);
        float slope = k.weight ? given * k.weight[j] : given;
        sum += slope;
        dot += slope * normalized;
        weight_sum[j] += given * normalized;
        bias_sum[j] += given;
      }
      if (!k.gx) continue;
      T* gx = k.gx + row * n;
      sum /= float(n);
      dot /= float(n);
      auto change = [=](int64_t j) {
        float given = float(g[j]), slope = k.weight ? given * k.weight[j] : given;
        return s * (slope - sum - (float(x[j]) - mean) * s * dot);
      };
      if (k.beta == 0) {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) gx[j] = T(change(j));
      } else {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) gx[j] = T(k.beta * float(gx[j]) + change(j));
      }
    }
  });
  if (!parameters.gweight && !parameters.gbias) return;
  for (int64_t j = 0; j < n; j++) {
    double weight_sum = 0, bias_sum = 0;
    for (int64_t part = 0; part < parts; part++) {
      weight_sum += double(partial[size_t(part * 2 * n + j)]);
      bias_sum += double(partial[size_t((part * 2 + 1) * n + j)]);
    }
    parameters.store(j, {float(weight_sum), float(bias_sum)});
  }
}

// run(tag of x, tag of the parameters)
template <class Run>
void dispatch_layer_norm(DType dtype, DType parameters, const Run& run) {
  if (parameters != dtype) return run(tag<bf16>{}, tag<float>{});
  dispatch(dtype, [&](auto t) { run(t, t); });
}

}  // namespace

Tensor layer_norm(const Tensor& input, const Tensor& weight, const Tensor& bias, double eps) {
  require_floating("layer_norm", input);
  PUPIL_CHECK(input.rank() >= 1 && bool(weight) == bool(bias), "layer_norm: x ", input.shape(),
              " with weight and bias, or neither");
  DType kept = weight ? weight.dtype() : acc_dtype(input.dtype());
  for (const Tensor* p : {&weight, &bias})
    PUPIL_CHECK(
        !*p || (p->rank() == 1 && p->dim(0) == input.dim(-1) && p->is_contiguous() &&
                p->dtype() == kept && (kept == input.dtype() || kept == acc_dtype(input.dtype()))),
        "layer_norm: ", p->shape(), " ", name_of(p->dtype()), " for x ", input.shape(), " ",
        name_of(input.dtype()));
  bool fast = kept == DType::f32 && cpu_fast(kept, input.device());
  if (kept != input.dtype() && !fast)
    return to_dtype(layer_norm(to_dtype(input, kept), weight, bias, eps), input.dtype());
  Tensor x = as_matrix(input), y = empty(input.shape(), x.dtype(), x.device());
  int64_t count = x.dim(0), columns = x.dim(1), x_stride = x.strides()[0];
  Tensor mean = empty({count}, acc_dtype(x.dtype()), x.device()), inverse_std = empty_like(mean);
  dispatch_layer_norm(x.dtype(), kept, [&](auto t, auto parameter) {
    using T = typename decltype(t)::type;
    using P = typename decltype(parameter)::type;
    using A = acc_t<T>;
    LayerNormForward<T, P> kernel{x.data<T>(),
                                  weight ? weight.data<P>() : nullptr,
                                  bias ? bias.data<P>() : nullptr,
                                  y.data<T>(),
                                  mean.data<A>(),
                                  inverse_std.data<A>(),
                                  x_stride,
                                  columns,
                                  A(eps)};
    if constexpr (std::is_same_v<P, float>) {
      if (fast) return cpu_forward(kernel, count);
    }
    if constexpr (std::is_same_v<T, P>) rows(x.device(), count, kernel, columns);
  });
  std::vector<Tensor> inputs{input};
  if (weight) inputs.insert(inputs.end(), {weight, bias});
  Tensor w = weight ? weight.detach() : weight;
  return record("layer_norm", y, inputs, {{"eps", eps}}, [=](Backward& grad) {
    Tensor gy = grad.gy.contiguous();
    bool affine = grad.inputs.size() > 1;
    dispatch_layer_norm(gy.dtype(), kept, [&](auto t, auto parameter) {
      using T = typename decltype(t)::type;
      using P = typename decltype(parameter)::type;
      using A = acc_t<T>;
      Tensor gweight, gbias, gx;
      float beta = 0, weight_beta = 0, bias_beta = 0;
      if (affine && grad[1].needed) gweight = grad[1].into(weight_beta);
      if (affine && grad[2].needed) gbias = grad[2].into(bias_beta);
      if (affine && !gweight) grad[1].none();
      if (affine && !gbias) grad[2].none();
      if (grad[0].needed)
        gx = grad[0].into(beta);
      else
        grad[0].none();
      LayerNormParameterGradient<T, P> parameters{x.data<T>(),
                                                  gy.data<T>(),
                                                  gweight ? gweight.data<P>() : nullptr,
                                                  gbias ? gbias.data<P>() : nullptr,
                                                  mean.data<A>(),
                                                  inverse_std.data<A>(),
                                                  x_stride,
                                                  columns,
                                                  weight_beta,
                                                  bias_beta};
      LayerNormInputGradient<T, P> input_gradient{
          x.data<T>(),    w ? w.data<P>() : nullptr, gy.data<T>(), gx ? gx.data<T>() : nullptr,
          mean.data<A>(), inverse_std.data<A>(),     x_stride,     columns,
          A(beta)};
      if constexpr (std::is_same_v<P, float>) {
        if (fast) return cpu_backward(input_gradient, parameters, count);
      }
      if constexpr (std::is_same_v<T, P>) {
        if (gweight || gbias) cols(gy.device(), count, columns, parameters);
        if (gx) rows(gy.device(), count, input_gradient, columns);
      }
    });
  });
}

PUPIL_SAMPLES(layer_norm) {
  auto f = [](auto& v) {
    return layer_norm(v[0], v.size() > 1 ? v[1] : Tensor(), v.size() > 1 ? v[2] : Tensor(), 1e-5);
  };
  s.add("tokens", {{2, 5, 8}, {8}, {8}}, f);
  s.add("matrix", {{7, 33}, {33}, {33}}, f);
  s.add("vector", {{19}, {19}, {19}}, f);
  s.add("not affine", {{3, 6}}, f);
  s.add("many rows", {{70, 5}, {5}, {5}}, f);
  s.add("empty", {{0, 4}, {4}, {4}}, f);
  s.add("one element", {{1}, {1}, {1}}, f);
  s.add("first token", {{3, 5, 8}, {8}, {8}},
        [](auto& v) { return layer_norm(slice(v[0], 1, 0, 1), v[1], v[2], 1e-5); });
  s.add("permuted", {{8, 3}, {8}, {8}}, [](auto& v) {
    return layer_norm(permute(v[0], {1, 0}), v[1], v[2], 1e-5);
  });
  s.add_error("width", {{3, 6}, {5}, {5}}, f);
}

}  // namespace pupil
