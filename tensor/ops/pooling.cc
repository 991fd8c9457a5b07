#include "../../autograd/samples.h"
#include "../launch.h"
#include "image.h"
#include "window.h"

namespace pupil {

struct PoolGeometry : Windows {
  bool count_include_pad;

  // How many positions the average divides by.
  PUPIL_HD int64_t divisor(int64_t out_y, int64_t out_x) const {
    int64_t top = out_y * stride_h - padding_h, left = out_x * stride_w - padding_w;
    int64_t bottom = top + kernel_h, right = left + kernel_w;
    int64_t margin_h = count_include_pad ? padding_h : 0,
            margin_w = count_include_pad ? padding_w : 0;
    if (bottom > height + margin_h) bottom = height + margin_h;
    if (right > width + margin_w) right = width + margin_w;
    if (top < -margin_h) top = -margin_h;
    if (left < -margin_w) left = -margin_w;
    return (bottom - top) * (right - left);
  }

  // f(pixel) for every pixel of an image plane that a window contains.
#ifdef __CUDACC__
#pragma nv_exec_check_disable  // f of the CPU's twin runs on the host alone
#endif
  template <class F>
  PUPIL_HD void each_inside(int64_t out_y, int64_t out_x, const F& f) const {
    for (int64_t ky = 0; ky < kernel_h; ky++) {
      int64_t y = out_y * stride_h - padding_h + ky * dilation_h;
      if (y < 0 || y >= height) continue;
      for (int64_t kx = 0; kx < kernel_w; kx++) {
        int64_t x = out_x * stride_w - padding_w + kx * dilation_w;
        if (x >= 0 && x < width) f(y * width + x);
      }
    }
  }
};

template <class T>
struct MaxPoolForward {
  PoolGeometry s;
  const T* x;
  T* y;
  int32_t* where;  // the pixel of the image plane that won
  PUPIL_HD void operator()(int64_t i) const {
    using A = acc_t<T>;
    const T* plane = x + i / s.out_width / s.out_height * s.height * s.width;
    int64_t best = -1;
    s.each_inside(i / s.out_width % s.out_height, i % s.out_width, [&](int64_t at) {
      if (best < 0 || A(plane[at]) > A(plane[best]) || A(plane[at]) != A(plane[at])) best = at;
    });
    y[i] = best < 0 ? T(-INFINITY) : plane[best];
    where[i] = int32_t(best);
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

namespace {

PoolGeometry check(const char* op, const Tensor& x, const PoolOptions& o) {
  PUPIL_CHECK(x.rank() == 4, op, ": (n,c,h,w) expected, got ", x.shape());
  PUPIL_CHECK(2 * o.padding.h <= o.kernel.h && 2 * o.padding.w <= o.kernel.w, op,
              ": padding at most half a kernel, ", x.shape());
  return {windows(op, x.dim(2), x.dim(3), {o.kernel, o.dilation, o.padding, o.stride}, o.ceil_mode),
          o.count_include_pad};
}

// The float32 and bf16 twin on the CPU, for every layout: an image has `block` channels side by
// side, of which up to 16 are done at once.
struct BlockPool {
  PoolGeometry s;
  int64_t images, block;

  BlockPool(const PoolGeometry& s, const Tensor& x) : s(s), block(ImageIndex(x).block) {
    images = x.dim(0) * x.dim(1) / block;
  }

  // f(first channel, how many): 16 as a constant, so that loops become vector code.
  template <class F>
  void each_run(const F& f) const {
    for (int64_t first = 0; first < block; first += 16)
      if (block - first >= 16)
        f(first, std::integral_constant<int64_t, 16>{});
      else
        f(first, block - first);
  }

  template <class T>
  void forward(const T* x, T* y, int32_t* where, bool maximum) const {
    BlockPool p = *this;
    parallel_for(images * s.out_height, images * s.out_height * s.out_width * block,
                 [=](int64_t row) {
                   const T* image = x + row / p.s.out_height * p.s.height * p.s.width * p.block;
                   int64_t out_y = row % p.s.out_height;
                   for (int64_t out_x = 0; out_x < p.s.out_width; out_x++)
                     p.each_run([&](int64_t first, auto width) {
                       float value[16];
                       int32_t winner[16];
                       for (int64_t c = 0; c < width; c++)
                         value[c] = maximum ? -INFINITY : 0, winner[c] = -1;
                       p.s.each_inside(out_y, out_x, [&](int64_t pixel) {
                         const T* from = image + pixel * p.block + first;
                         if (maximum) {
#pragma omp simd
                           for (int64_t c = 0; c < width; c++) {
                             float v = float(from[c]);
                             bool better = winner[c] < 0 || v > value[c] || v != v;
                             value[c] = better ? v : value[c];
                             winner[c] = better ? int32_t(pixel) : winner[c];
                           }
                         } else {
#pragma omp simd
                           for (int64_t c = 0; c < width; c++) value[c] += float(from[c]);
                         }
                       });
                       int64_t at = (row * p.s.out_width + out_x) * p.block + first;
                       float divisor = maximum ? 1.0f : float(p.s.divisor(out_y, out_x));
                       for (int64_t c = 0; c < width; c++)
                         y[at + c] = T(maximum ? value[c] : value[c] / divisor);
                       if (where)
                         for (int64_t c = 0; c < width; c++) where[at + c] = winner[c];
                     });
                 });
  }

  // Every window gives its share to its pixels, in float32: bf16 is rounded when all have given.
  template <class T>
  void backward(const T* gy, const int32_t* where, T* gx) const {
    BlockPool p = *this;
    int64_t size = s.height * s.width * block;
    parallel_for(images, images * size, [=](int64_t i) {
      std::vector<float> rounded_later(std::is_same_v<T, float> ? 0 : size_t(size));
      float* image = rounded_later.data();
      if constexpr (std::is_same_v<T, float>) {
        image = gx + i * size;
        std::fill(image, image + size, 0.0f);
      }
      for (int64_t out_y = 0; out_y < p.s.out_height; out_y++)
        for (int64_t out_x = 0; out_x < p.s.out_width; out_x++)
          p.each_run([&](int64_t first, auto width) {
            int64_t at = ((i * p.s.out_height + out_y) * p.s.out_width + out_x) * p.block + first;
            const T* share = gy + at;
            if (where) {
              for (int64_t c = 0; c < width; c++)
                if (where[at + c] >= 0)
                  image[where[at + c] * p.block + first + c] += float(share[c]);
              return;
            }
            float divisor = float(p.s.divisor(out_y, out_x));
            p.s.each_inside(out_y, out_x, [&](int64_t pixel) {
              float* to = image + pixel * p.block + first;
#pragma omp simd
              for (int64_t c = 0; c < width; c++) to[c] += float(share[c]) / divisor;
            });
          });
      for (size_t k = 0; k < rounded_later.size(); k++)
        gx[i * size + int64_t(k)] = T(rounded_later[k]);
    });
  }
};

Tensor empty_in(const Shape& shape, const Tensor& like) {
  return like.layout() == Layout::strided ? empty(shape, like.dtype(), like.device())
                                          : empty_image(shape, like.dtype(), like.layout());
}

Tensor pool(const char* op, const Tensor& input, const PoolGeometry& s, bool maximum) {
  bool fast = cpu_fast(acc_dtype(input.dtype()), input.device());
  Layout layout = input.layout();
  Tensor x = in_layout(input, fast ? layout : Layout::strided).detach(), where;
  Tensor y = empty_in({x.dim(0), x.dim(1), s.out_height, s.out_width}, x);
  if (maximum) where = empty({y.numel()}, DType::i32, x.device());
  if (fast)
    dispatch_fast(x.dtype(), [&](auto t) {
      using T = typename decltype(t)::type;
      BlockPool(s, x).forward(x.data<T>(), y.data<T>(), maximum ? where.data<int32_t>() : nullptr,
                              maximum);
    });
  else
    dispatch(x.dtype(), [&](auto t) {
      using T = typename decltype(t)::type;
      if (maximum)
        map(x.device(), y.numel(),
            MaxPoolForward<T>{s, x.data<T>(), y.data<T>(), where.data<int32_t>()});
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
        Tensor gx = empty_in(shape, gy);
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

Tensor global_avg_pool(const Tensor& input) {
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
    Tensor gx = layout == Layout::strided ? empty(shape, gy.dtype(), gy.device())
                                          : empty_image(shape, gy.dtype(), layout);
    dispatch(gy.dtype(), [&](auto t) {
      using T = typename decltype(t)::type;
      rows(gx.device(), gy.numel() / block,
           GlobalAverageBackward<T>{gy.data<T>(), gx.data<T>(), pixels, block}, pixels * block);
    });
    grad[0].give(gx);
  });
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
