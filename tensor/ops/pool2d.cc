#include "../../autograd/samples.h"
#include "broadcast.h"
#include "pooling.h"

namespace pupil {

template <class T>
struct MaxPoolForward {
  PoolGeometry s;
  const T* x;
  T* y;
  int32_t* where;  // the pixel of the image plane that won; may be null
  PUPIL_HD void operator()(int64_t i) const {
    using A = acc_t<T>;
    const T* plane = x + i / s.out_width / s.out_height * s.height * s.width;
    int64_t best = -1;
    s.each_inside(i / s.out_width % s.out_height, i % s.out_width, [&](int64_t at) {
      if (best < 0 || A(plane[at]) > A(plane[best]) || A(plane[at]) != A(plane[at])) best = at;
    });
    y[i] = best < 0 ? T(-INFINITY) : plane[best];
    if (where) where[i] = int32_t(best);
  }
};

template <class T>
struct AveragePoolForward {
  PoolGeometry s;
  const T* x;
  T* y;
  PUPIL_HD void operator()(int64_t i) const {
    using A = acc_t<T>;
    int64_t out_x = i % s.out_width, out_y = i / s.out_width % s.out_height;
    const T* plane = x + i / s.out_width / s.out_height * s.height * s.width;
    A sum = 0;
    s.each_inside(out_y, out_x, [&](int64_t at) { sum = sum + A(plane[at]); });
    y[i] = T(sum / A(s.divisor(out_y, out_x)));
  }
};

// An input pixel gathers from the windows that contain it: those it won (where given), or its share
// of each.
template <class T>
struct PoolBackward {
  PoolGeometry s;
  const T* gy;
  const int32_t* where;
  T* gx;
  PUPIL_HD void operator()(int64_t i) const {
    using A = acc_t<T>;
    int64_t in_x = i % s.width, in_y = i / s.width % s.height, plane = i / s.width / s.height;
    A sum = 0;
    s.each_around(in_y, in_x, [&](int64_t, int64_t, int64_t out_y, int64_t out_x) {
      int64_t o = (plane * s.out_height + out_y) * s.out_width + out_x;
      if (!where)
        sum = sum + A(gy[o]) / A(s.divisor(out_y, out_x));
      else if (where[o] == int32_t(in_y * s.width + in_x))
        sum = sum + A(gy[o]);
    });
    gx[i] = T(sum);
  }
};

namespace {

PoolGeometry check(const char* op, const Tensor& x, const PoolOptions& o) {
  require_floating(op, x);
  PUPIL_CHECK(x.rank() == 4, op, ": (n,c,h,w) expected, got ", x.shape());
  PUPIL_CHECK(2 * o.padding.h <= o.kernel.h && 2 * o.padding.w <= o.kernel.w, op,
              ": padding at most half a kernel, ", x.shape());
  return {windows(op, x.dim(2), x.dim(3), {o.kernel, o.dilation, o.padding, o.stride}, o.ceil_mode),
          o.count_include_pad};
}

Tensor pool(const char* op, const Tensor& input, const PoolGeometry& s, bool maximum) {
  bool fast = cpu_fast(acc_dtype(input.dtype()), input.device());
  Layout layout = input.layout();
  Tensor x = in_layout(input, fast ? layout : Layout::strided).detach(), where;
  Tensor y =
      empty_in(x.layout(), {x.dim(0), x.dim(1), s.out_height, s.out_width}, x.dtype(), x.device());
  if (maximum && grad_enabled() && input.requires_grad())
    where = empty({y.numel()}, DType::i32, x.device());
  int32_t* won = where ? where.data<int32_t>() : nullptr;
  if (fast)
    dispatch_fast(x.dtype(), [&](auto t) {
      using T = typename decltype(t)::type;
      BlockPool(s, x).forward(x.data<T>(), y.data<T>(), won, maximum);
    });
  else
    dispatch(x.dtype(), [&](auto t) {
      using T = typename decltype(t)::type;
      if (maximum)
        map(x.device(), y.numel(), MaxPoolForward<T>{s, x.data<T>(), y.data<T>(), won});
      else
        map(x.device(), y.numel(), AveragePoolForward<T>{s, x.data<T>(), y.data<T>()});
    });
  return record(
      op, in_layout(y, layout), {input},
      {{"kernel", Shape{s.kernel_h, s.kernel_w}},
       {"window",
        Shape{s.stride_h, s.stride_w, s.padding_h, s.padding_w, s.dilation_h, s.dilation_w}},
       {"include_pad", s.count_include_pad}},
      [=, shape = x.shape()](Backward& grad) {
        Tensor gy = in_layout(grad.gy, fast ? layout : Layout::strided);
        Tensor gx = empty_in(gy.layout(), shape, gy.dtype(), gy.device());
        const int32_t* winners = where ? where.data<int32_t>() : nullptr;
        if (fast)
          dispatch_fast(gy.dtype(), [&](auto t) {
            using T = typename decltype(t)::type;
            BlockPool(s, gx).backward(gy.data<T>(), winners, gx.data<T>());
          });
        else
          dispatch(gy.dtype(), [&](auto t) {
            using T = typename decltype(t)::type;
            map(gx.device(), gx.numel(), PoolBackward<T>{s, gy.data<T>(), winners, gx.data<T>()});
          });
        grad[0].give(in_layout(gx, layout));
      });
}

}  // namespace

Tensor max_pool2d(const Tensor& x, const PoolOptions& options) {
  return pool("max_pool2d", x, check("max_pool2d", x, options), true);
}

Tensor avg_pool2d(const Tensor& x, const PoolOptions& options) {
  PUPIL_CHECK(options.dilation == Pair(1), "avg_pool2d: no dilation");
  return pool("avg_pool2d", x, check("avg_pool2d", x, options), false);
}

PUPIL_SAMPLES(max_pool2d) {
  auto with = [](PoolOptions options) {
    return [=](auto& v) { return max_pool2d(v[0], options); };
  };
  s.add("stem", {{2, 3, 9, 8}}, with({3, 2, 1}));
  s.add("ceil", {{1, 2, 8, 7}}, with({3, 2, 0, 1, true}));
  s.add("dilated", {{1, 2, 8, 7}}, with({2, 1, 0, 2}));
  s.add("one", {{1, 1, 1, 1}}, with({1, 1}));
  s.add("permuted", {{2, 6, 5, 3}}, [](auto& v) {
    return max_pool2d(permute(v[0], {0, 3, 1, 2}), {2, 2});
  });
  s.add("empty", {{0, 2, 4, 4}}, with({2, 2}));
  for (int64_t channels : {32, 20})
    s.add(concat("after conv2d ", channels), {{2, 3, 6, 5}, {channels, 3, 3, 3}},
          [](auto& v) {
            return to_strided(max_pool2d(conv2d(v[0], v[1], Tensor(), {1, 1}), {3, 2, 1}));
          },
          {-1, 1, false});  // in bf16 a rounding changes the winner
  s.add_error("window", {{1, 1, 2, 2}}, with({5, 1}));
}

PUPIL_SAMPLES(avg_pool2d) {
  auto with = [](PoolOptions options) {
    return [=](auto& v) { return avg_pool2d(v[0], options); };
  };
  s.add("2x2", {{2, 3, 6, 7}}, with({2, 2}));
  s.add("padded", {{1, 2, 7, 7}}, with({3, 2, 1}));
  s.add("padding excluded", {{1, 2, 7, 7}}, with({3, 2, 1, 1, false, false}));
  s.add("ceil", {{1, 2, 8, 7}}, with({3, 2, 1, 1, true}));
  s.add("asymmetric", {{1, 2, 6, 7}}, with({{2, 3}, {1, 2}, {0, 1}}));
  s.add("one", {{1, 1, 1, 1}}, with({1, 1}));
  s.add("empty", {{0, 2, 4, 4}}, with({2, 2}));
  for (int64_t channels : {32, 20})
    s.add(concat("after conv2d ", channels), {{2, 3, 6, 5}, {channels, 3, 3, 3}}, [](auto& v) {
      return to_strided(avg_pool2d(conv2d(v[0], v[1], Tensor(), {1, 1}), {3, 2, 1}));
    });
  s.add_error("rank", {{2, 2}}, with({2, 2}));
}

}  // namespace pupil
