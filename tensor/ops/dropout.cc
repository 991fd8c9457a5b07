// y = x * mask / (1 - p). The mask is drawn from the key when it is needed, forward and backward,
// and never stored. Srivastava et al. 2014; drop_path: Huang et al. 2016 (stochastic depth).
#include "../../autograd/samples.h"
#include "../launch.h"
#include "../ops.h"
#include "broadcast.h"

namespace pupil {

template <class T>
struct Dropout {
  const T* x;
  T* y;
  RngKey key;
  float p, scale;
  int64_t group;  // elements that share one decision
  PUPIL_HD void operator()(int64_t i) const {
    using A = acc_t<T>;
    y[i] = T(A(x[i]) * (uniform(key, i / group) < p ? A(0) : A(scale)));
  }
};

namespace {

// The same bits as the functor above, one Philox block for four elements and blocks side by side in
// vector registers.
void cpu_dropout(const float* x, float* y, int64_t n, const RngKey& key, float p, float scale) {
  constexpr int64_t kTile = 512;
  int64_t tiles = (n + kTile - 1) / kTile;
  parallel_for(tiles, n * 4, [=](int64_t tile) {
    int32_t bits[kTile];
    int64_t begin = tile * kTile, count = std::min(kTile, n - begin);
    uint32_t high = uint32_t(begin >> 34) << 20;  // a tile never crosses a multiple of 2^34
#pragma omp simd
    for (int b = 0; b < kTile / 4; b++) {
      U4 r = philox(key.seed, U4{uint32_t(begin >> 2) + uint32_t(b), key.op ^ high,
                                 uint32_t(key.step), uint32_t(key.step >> 32)});
      bits[4 * b] = int32_t(r.x >> 8);
      bits[4 * b + 1] = int32_t(r.y >> 8);
      bits[4 * b + 2] = int32_t(r.z >> 8);
      bits[4 * b + 3] = int32_t(r.w >> 8);
    }
    const float* in = x + begin;
    float* out = y + begin;
#pragma omp simd
    for (int64_t i = 0; i < count; i++)
      out[i] = in[i] * (float(bits[i]) * 0x1p-24f < p ? 0.0f : scale);
  });
}

// x dense in memory; element order is memory order, which begins with the sample in every layout.
Tensor dropped(const Tensor& x, double p, const RngKey& key, int64_t group) {
  Tensor y = empty_like(x);
  float rate = float(p), scale = float(1 / (1 - p));
  if (group == 1 && cpu_fast(x.dtype(), x.device())) {
    cpu_dropout(x.data<float>(), y.data<float>(), x.numel(), key, rate, scale);
    return y;
  }
  dispatch(x.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    map(x.device(), x.numel(), Dropout<T>{x.data<T>(), y.data<T>(), key, rate, scale, group});
  });
  return y;
}

}  // namespace

Tensor dropout(const Tensor& x, double p, RngKey key) {
  require_floating("dropout", x);
  PUPIL_CHECK(p >= 0 && p < 1, "dropout: p = ", p, " for ", x.shape());
  if (p == 0) return x;
  return record("dropout", dropped(x.contiguous(), p, key, 1), {x},
                [p, key](Backward& b) { b[0].give(dropped(b.gy.contiguous(), p, key, 1)); });
}

Tensor drop_path(const Tensor& x, double p, RngKey key) {
  require_floating("drop_path", x);
  PUPIL_CHECK(p >= 0 && p < 1, "drop_path: p = ", p, " for ", x.shape());
  PUPIL_CHECK(x.rank() >= 1, "drop_path: samples along axis 0 expected, got ", x.shape());
  if (p == 0 || x.numel() == 0) return x;
  int64_t group = x.numel() / x.dim(0);
  auto dense = [](const Tensor& t) { return t.layout() == Layout::strided ? t.contiguous() : t; };
  return record(
      "drop_path", dropped(dense(x), p, key, group), {x},
      [p, key, group, dense](Backward& b) { b[0].give(dropped(dense(b.gy), p, key, group)); });
}

namespace {

Tensor masked(const char* op, const Tensor& x, double p, const Tensor& mask, double factor) {
  require_floating(op, x);
  PUPIL_CHECK(p >= 0 && p < 1, op, ": p = ", p, " for ", x.shape());
  return scale(mul(x, mask.to(x.dtype())), factor);
}

}  // namespace

Tensor dropout(const Tensor& x, double p, const Tensor& mask) {
  PUPIL_CHECK(mask.shape() == x.shape(), "dropout: mask ", mask.shape(), " for ", x.shape());
  return masked("dropout", x, p, mask, 1 / (1 - p));
}

Tensor drop_path(const Tensor& x, double p, const Tensor& mask, bool scale_by_keep) {
  PUPIL_CHECK(x.rank() >= 1 && mask.shape() == Shape{x.dim(0)}, "drop_path: mask ", mask.shape(),
              " for ", x.shape());
  Shape samples = x.shape();
  for (int d = 1; d < samples.rank; d++) samples[d] = 1;
  return masked("drop_path", x, p, view(mask, samples), scale_by_keep ? 1 / (1 - p) : 1);
}

namespace {

[[maybe_unused]] void dropout_samples(auto& s, Tensor (*f)(const Tensor&, double, RngKey)) {
  auto at = [f](double p) { return [=](auto& v) { return f(v[0], p, RngKey{7, 3, 1}); }; };
  s.add("matrix", {{11, 13}}, at(0.3));
  s.add("p = 0", {{3, 4}}, at(0));
  s.add("high p", {{40, 3}}, at(0.9));
  s.add("long", {{1031}}, at(0.5));
  s.add("one element", {{1}}, at(0.5));
  s.add("empty", {{0, 3}}, at(0.5));
  s.add("images", {{6, 2, 3, 3}}, at(0.5));
  s.add("transposed", {{4, 3}}, [f](auto& v) {
    return f(permute(v[0], {1, 0}), 0.5, RngKey{7, 3, 1});
  });
  s.add_error("p = 1", {{3}}, at(1));
}

}  // namespace

PUPIL_SAMPLES(dropout) {
  auto half = [](auto& v) { return dropout(v[0], 0.5, v[1]); };
  s.add("given mask", {{4, 3}, {4, 3}}, half, {.constants = {1}});
  s.add_error("mask", {{4, 3}, {4}}, half);
  dropout_samples(s, dropout);
  s.add("scalar", {{}}, [](auto& v) { return dropout(v[0], 0.5, RngKey{7, 3, 1}); });
}
PUPIL_SAMPLES(drop_path) {
  for (bool scaled : {false, true}) {
    auto half = [=](auto& v) { return drop_path(v[0], 0.5, v[1], scaled); };
    s.add(concat("given mask, ", scaled), {{4, 3, 2}, {4}}, half, {.constants = {1}});
    s.add_error(concat("mask, ", scaled), {{4, 3}, {3}}, half);
  }
  dropout_samples(s, drop_path);
  s.add_error("scalar", {{}}, [](auto& v) { return drop_path(v[0], 0.5, RngKey{7, 3, 1}); });
}

}  // namespace pupil
