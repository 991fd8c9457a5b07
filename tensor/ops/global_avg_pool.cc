#include "../../autograd/samples.h"
#include "broadcast.h"
#include "pooling.h"

namespace pupil {

template <class T>
struct GlobalAverage {
  const T* x;
  T* y;
  int64_t channels, pixels, block;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t i) const {
    using A = acc_t<T>;
    int64_t c = i % channels;
    const T* p = x + (i - c + c / block * block) * pixels + c % block;
    A sum = team.reduce(pixels, A(0), Add{}, [&](int64_t j) { return A(p[j * block]); });
    team.each(1, [&](int64_t) { y[i] = T(sum / A(pixels)); });
  }
};

// One team per block of channels of one sample.
template <class T>
struct GlobalAverageBackward {
  const T* gy;
  T* gx;
  int64_t pixels, block;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    using A = acc_t<T>;
    const T* from = gy + row * block;
    T* to = gx + row * block * pixels;
    if (block == 1)
      team.each(pixels, [&](int64_t p) { to[p] = T(A(from[0]) / A(pixels)); });
    else
      for (int64_t p = 0; p < pixels; p++)
        team.each(block, [&](int64_t c) { to[p * block + c] = T(A(from[c]) / A(pixels)); });
  }
};

Tensor global_avg_pool(const Tensor& input) {
  require_floating("global_avg_pool", input);
  PUPIL_CHECK(input.rank() == 4 && input.dim(2) > 0 && input.dim(3) > 0,
              "global_avg_pool: (n,c,h,w) expected, got ", input.shape());
  Layout layout = input.layout();
  Tensor x = layout == Layout::strided ? input.contiguous().detach() : input.detach();
  Shape shape = x.shape();
  int64_t channels = x.dim(1), pixels = x.dim(2) * x.dim(3);
  int64_t block = layout == Layout::nhwc ? channels : layout == Layout::nchw16c ? 16 : 1;
  Tensor y = empty({x.dim(0), channels}, x.dtype(), x.device());
  if (cpu_fast(acc_dtype(x.dtype()), x.device()))  // one window: the whole image
    dispatch_fast(x.dtype(), [&](auto t) {
      using T = typename decltype(t)::type;
      BlockPool({{x.dim(2), x.dim(3), 1, 1, x.dim(2), x.dim(3), 1, 1, 0, 0, 1, 1}, false}, x)
          .forward(x.data<T>(), y.data<T>(), nullptr, false);
    });
  else
    dispatch(x.dtype(), [&](auto t) {
      using T = typename decltype(t)::type;
      rows(x.device(), y.numel(),
           GlobalAverage<T>{x.data<T>(), y.data<T>(), channels, pixels, block}, pixels);
    });
  return record("global_avg_pool", y, {input}, [=](Backward& grad) {
    Tensor gy = grad.gy.contiguous();
    Tensor gx = empty_in(layout, shape, gy.dtype(), gy.device());
    dispatch(gy.dtype(), [&](auto t) {
      using T = typename decltype(t)::type;
      rows(gx.device(), gy.numel() / block,
           GlobalAverageBackward<T>{gy.data<T>(), gx.data<T>(), pixels, block}, pixels * block);
    });
    grad[0].give(gx);
  });
}

PUPIL_SAMPLES(global_avg_pool) {
  auto f = [](auto& v) { return global_avg_pool(v[0]); };
  s.add("image", {{3, 5, 4, 3}}, f);
  s.add("one pixel", {{2, 5, 1, 1}}, f);
  s.add("one element", {{1, 1, 1, 1}}, f);
  s.add("empty", {{0, 5, 2, 2}}, f);
  s.add("permuted", {{2, 4, 3, 5}}, [](auto& v) {
    return global_avg_pool(permute(v[0], {0, 3, 1, 2}));
  });
  for (int64_t channels : {32, 20})
    s.add(concat("after conv2d ", channels), {{2, 3, 6, 5}, {channels, 3, 3, 3}}, [](auto& v) {
      return global_avg_pool(conv2d(v[0], v[1], Tensor(), {1, 1}));
    });
  s.add_error("rank", {{2, 2}}, f);
}

}  // namespace pupil
