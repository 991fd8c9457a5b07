// softmax and log_softmax along the last axis, of x / temperature. The maximum is subtracted first.
#include <algorithm>

#include "../../autograd/samples.h"
#include "../ops.h"
#include "broadcast.h"
#include "row_softmax.h"

namespace pupil {

template <bool logarithm, class T>
struct SoftmaxForward {
  const T* x;
  T* y;
  int64_t n;
  double inverse_temperature;
  int64_t* only_minus_inf;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    using A = acc_t<T>;
    const T* in = x + row * n;
    T* out = y + row * n;
    A scale = A(inverse_temperature);
    auto r = row_statistics<T>(team, in, n, scale);
    if (r.max == A(-INFINITY) &&  // and no NaN
        team.reduce(n, int64_t(0), Add{}, [&](int64_t j) { return int64_t(A(in[j]) == r.max); }) ==
            n)
      raise_flag(only_minus_inf);
    team.each(n, [&](int64_t j) {
      A log_p = (A(in[j]) - r.max) * scale - r.log_sum;
      out[j] = T(logarithm ? log_p : exp(log_p));
    });
  }
};

// softmax: gx = y (gy - <gy, y>) / T; log_softmax: gx = (gy - e^y sum gy) / T.
template <bool logarithm, class T>
struct SoftmaxBackward {
  const T *y, *gy;
  T* gx;
  int64_t n;
  double inverse_temperature;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    using A = acc_t<T>;
    const T *p = y + row * n, *g = gy + row * n;
    T* out = gx + row * n;
    A scale = A(inverse_temperature);
    A dot = team.reduce(n, A(0), Add{},
                        [&](int64_t j) { return A(g[j]) * (logarithm ? A(1) : A(p[j])); });
    team.each(n, [&](int64_t j) {
      A gradient = logarithm ? A(g[j]) - exp(A(p[j])) * dot : A(p[j]) * (A(g[j]) - dot);
      out[j] = T(gradient * scale);
    });
  }
};

namespace {

bool only_minus_inf(const float* x, int64_t n, float max) {
  return max == -INFINITY && std::all_of(x, x + n, [](float v) { return v == -INFINITY; });
}

template <bool logarithm>
void cpu_forward(const float* x, float* y, int64_t rows, int64_t n, float scale, int64_t* flag) {
  parallel_for(rows, rows * n * 4, [=](int64_t row) {
    const float* in = x + row * n;
    float* out = y + row * n;
    if constexpr (logarithm) {
      auto r = cpu_row_statistics(in, n, scale);
      if (only_minus_inf(in, n, r.max)) raise_flag(flag);
#pragma omp simd
      for (int64_t j = 0; j < n; j++) out[j] = (in[j] - r.max) * scale - r.log_sum;
    } else {
      float max = -INFINITY, sum = 0;
#pragma omp simd reduction(max : max)
      for (int64_t j = 0; j < n; j++) max = in[j] > max ? in[j] : max;
      if (only_minus_inf(in, n, max)) raise_flag(flag);
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < n; j++) {
        float e = vector_exp_negative((in[j] - max) * scale);
        out[j] = e;
        sum += e;
      }
      float inverse = 1.0f / sum;
#pragma omp simd
      for (int64_t j = 0; j < n; j++) out[j] *= inverse;
    }
  });
}

template <bool logarithm>
void cpu_backward(const float* y, const float* gy, float* gx, int64_t rows, int64_t n,
                  float scale) {
  parallel_for(rows, rows * n * 4, [=](int64_t row) {
    const float *p = y + row * n, *g = gy + row * n;
    float* out = gx + row * n;
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t j = 0; j < n; j++) dot += logarithm ? g[j] : g[j] * p[j];
#pragma omp simd
    for (int64_t j = 0; j < n; j++)
      out[j] = (logarithm ? g[j] - vector_exp(p[j]) * dot : p[j] * (g[j] - dot)) * scale;
  });
}

template <bool logarithm>
Tensor softmax_along_rows(const char* op, const Tensor& input, double temperature) {
  require_floating(op, input);
  PUPIL_CHECK(input.rank() >= 1, op, ": at least one axis expected, got ", input.shape());
  PUPIL_CHECK(temperature > 0, op, ": temperature ", temperature, " for ", input.shape());
  Tensor x = input.contiguous(), y = empty(x.shape(), x.dtype(), x.device());
  int64_t n = x.dim(-1), count = n ? x.numel() / n : 0;
  double scale = 1 / temperature;
  Tensor bad_row = zeros({}, DType::i64, x.device());
  int64_t* flag = bad_row.data<int64_t>();
  if (cpu_fast(x.dtype(), x.device()))
    cpu_forward<logarithm>(x.data<float>(), y.data<float>(), count, n, float(scale), flag);
  else
    dispatch(x.dtype(), [&](auto t) {
      using T = typename decltype(t)::type;
      rows(x.device(), count,
           SoftmaxForward<logarithm, T>{x.data<T>(), y.data<T>(), n, scale, flag}, n * 4);
    });
  PUPIL_CHECK(bad_row.item() == 0, op, ": a row of only -inf in ", x.shape());
  Tensor saved = y.detach();
  const Attributes said{{"temperature", temperature}};
  return record(op, y, {input}, said, [saved, n, count, scale](Backward& b) {
    Tensor gy = b.gy.contiguous();
    b.gy = Tensor();
    Tensor gx = gy.sole_owner() ? gy : empty_like(gy);
    if (cpu_fast(gy.dtype(), gy.device()))
      cpu_backward<logarithm>(saved.data<float>(), gy.data<float>(), gx.data<float>(), count, n,
                              float(scale));
    else
      dispatch(gy.dtype(), [&](auto t) {
        using T = typename decltype(t)::type;
        rows(gy.device(), count,
             SoftmaxBackward<logarithm, T>{saved.data<T>(), gy.data<T>(), gx.data<T>(), n, scale},
             n * 4);
      });
    gy = Tensor();
    b[0].give(std::move(gx));
  });
}

}  // namespace

Tensor softmax(const Tensor& x, double temperature) {
  return softmax_along_rows<false>("softmax", x, temperature);
}
Tensor log_softmax(const Tensor& x, double temperature) {
  return softmax_along_rows<true>("log_softmax", x, temperature);
}

namespace {

[[maybe_unused]] void softmax_samples(auto& s, Tensor (*f)(const Tensor&, double)) {
  auto at = [f](double temperature) { return [=](auto& v) { return f(v[0], temperature); }; };
  s.add("rows", {{3, 5}}, at(1), {.low = -3, .high = 3});
  s.add("temperature", {{3, 5}}, at(4), {.low = -3, .high = 3});
  s.add("long rows", {{2, 301}}, at(1), {.low = -3, .high = 3});
  s.add("batch", {{2, 3, 4}}, at(1));
  s.add("vector", {{6}}, at(1));
  s.add("one class", {{3, 1}}, at(1));
  s.add("empty", {{0, 3}}, at(1));
  s.add("no classes", {{3, 0}}, at(1));
  s.add("transposed", {{4, 3}}, [f](auto& v) { return f(permute(v[0], {1, 0}), 1); });
  s.add_error("integers", {{3}}, [f](auto& v) { return f(v[0].to(DType::i64), 1); });
  s.add_error("scalar", {{}}, at(1));
  s.add_error("temperature", {{3}}, at(0));
  s.add_error("only -inf", {{2, 2}}, [f](auto& v) { return f(log(scale(v[0], 0)), 1); });
}

}  // namespace

PUPIL_SAMPLES(softmax) { softmax_samples(s, softmax); }
PUPIL_SAMPLES(log_softmax) { softmax_samples(s, log_softmax); }

}  // namespace pupil
