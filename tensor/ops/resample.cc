// Linear resampling of grids, separable: a table of weights along each axis, made on the host in
// f64. interpolate and its coordinates are PyTorch's; resample_pos_embed is timm's (bicubic with
// antialias); adaptive_avg_pool2d weighs the pixels of a cell equally.
#include <algorithm>

#include "../../autograd/samples.h"
#include "../launch.h"
#include "../ops.h"
#include "broadcast.h"

namespace pupil {

// weight[o * out_step + i * in_step] is the share of input i in output o. It is 0 outside of the
// inputs window[2 o] <= i < window[2 o + 1].
struct AxisWeights {
  const double* weight;
  const int64_t* window;
  int64_t in, out, in_step, out_step;
};

// y[n, p, q, d] = sum_ij rows(p, i) columns(q, j) x[n, i, j, d]
template <class T>
struct ResampleGrid {
  const T* x;
  T* y;
  AxisWeights rows, columns;
  int64_t depth;
  PUPIL_HD void operator()(int64_t k) const {
    int64_t d = k % depth, q = k / depth % columns.out, p = k / depth / columns.out % rows.out;
    const T* plane = x + k / depth / columns.out / rows.out * rows.in * columns.in * depth + d;
    double sum = 0;
    for (int64_t i = rows.window[2 * p]; i < rows.window[2 * p + 1]; i++) {
      double row = 0;
      for (int64_t j = columns.window[2 * q]; j < columns.window[2 * q + 1]; j++)
        row += columns.weight[q * columns.out_step + j * columns.in_step] *
               double(acc_t<T>(plane[(i * columns.in + j) * depth]));
      sum += rows.weight[p * rows.out_step + i * rows.in_step] * row;
    }
    y[k] = T(acc_t<T>(sum));
  }
};

namespace {

// One axis: weights (outputs, inputs), and the windows of the outputs followed by those of the
// adjoint, (outputs + inputs, 2).
struct Axis {
  int64_t inputs, outputs;
  Tensor weights, windows;

  // share(o, add) calls add(i, w) for the inputs of output o; an input may come twice.
  template <class F>
  Axis(int64_t inputs, int64_t outputs, Device device, F&& share)
      : inputs(inputs), outputs(outputs) {
    std::vector<double> table(size_t(inputs * outputs));
    std::vector<int64_t> window(size_t(2 * (inputs + outputs)));
    auto widen = [&](int64_t row, int64_t to) {
      int64_t &begin = window[size_t(2 * row)], &end = window[size_t(2 * row + 1)];
      begin = begin == end ? to : std::min(begin, to);
      end = std::max(end, to + 1);
    };
    for (int64_t o = 0; o < outputs; o++)
      share(o, [&](int64_t i, double weight) {
        table[size_t(o * inputs + i)] += weight;
        widen(o, i);
        widen(outputs + i, o);
      });
    weights = from(table, {outputs, inputs}).to(device);
    windows = from(window, {outputs + inputs, 2}).to(device);
  }
  AxisWeights forward() const {
    return {weights.data<double>(), windows.data<int64_t>(), inputs, outputs, 1, inputs};
  }
  AxisWeights adjoint() const {
    return {
        weights.data<double>(), windows.data<int64_t>() + 2 * outputs, outputs, inputs, inputs, 1};
  }
};

// Planes of `depth` values a pixel. x (planes..., rows, columns, depth) in any shape -> `shape`.
Tensor resampled(const char* op, const Tensor& x, const Shape& shape, const Axis& rows,
                 const Axis& columns, int64_t depth) {
  auto apply = [=](const Tensor& from, const Shape& to, bool adjoint) {
    Tensor source = from.contiguous(), y = empty(to, from.dtype(), from.device());
    dispatch(y.dtype(), [&](auto t) {
      using T = typename decltype(t)::type;
      map(y.device(), y.numel(),
          ResampleGrid<T>{source.data<T>(), y.data<T>(), adjoint ? rows.adjoint() : rows.forward(),
                          adjoint ? columns.adjoint() : columns.forward(), depth});
    });
    return y;
  };
  return record(op, apply(x, shape, false), {x},
                [apply, old = x.shape()](Backward& b) { b[0].give(apply(b.gy, old, true)); });
}

// Keys 1981.
double cubic(double x, double a) {
  x = std::fabs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

// A filter widened by the shrink factor `ratio` and normalised per output.
Axis antialiased_axis(int64_t inputs, int64_t outputs, double ratio, bool is_cubic, Device device) {
  double widen = std::max(ratio, 1.0), support = (is_cubic ? 2 : 1) * widen;
  return Axis(inputs, outputs, device, [=](int64_t o, auto add) {
    double centre = (double(o) + 0.5) * ratio, total = 0;
    int64_t begin = std::max<int64_t>(0, int64_t(centre - support + 0.5));
    int64_t end = std::min(inputs, int64_t(centre + support + 0.5));
    auto weight = [=](int64_t i) {
      double at = (double(i) + 0.5 - centre) / widen;
      return is_cubic ? cubic(at, -0.5) : std::max(0.0, 1 - std::fabs(at));
    };
    for (int64_t i = begin; i < end; i++) total += weight(i);
    for (int64_t i = begin; i < end; i++) add(i, weight(i) / total);
  });
}

// scale 0: outputs is given.
Axis interpolation_axis(int64_t inputs, int64_t outputs, double scale, const InterpolateOptions& o,
                        Device device) {
  using Mode = InterpolateOptions::Mode;
  double ratio = scale > 0 ? 1 / scale : double(inputs) / double(outputs);
  if (o.align_corners) ratio = outputs > 1 ? double(inputs - 1) / double(outputs - 1) : 0;
  if (o.antialias) return antialiased_axis(inputs, outputs, ratio, o.mode == Mode::bicubic, device);
  int64_t last = inputs - 1;
  return Axis(inputs, outputs, device, [=](int64_t out, auto add) {
    if (o.mode == Mode::nearest || o.mode == Mode::nearest_exact) {
      // PyTorch counts in float32 here; with a given scale the pixel may depend on it.
      float at = (float(out) + (o.mode == Mode::nearest ? 0.0f : 0.5f)) * float(ratio);
      return add(std::min(int64_t(at), last), 1.0);
    }
    double at = o.align_corners ? double(out) * ratio : (double(out) + 0.5) * ratio - 0.5;
    if (o.mode == Mode::bilinear) at = std::max(at, 0.0);
    int64_t i = std::min(int64_t(std::floor(at)), last);
    double t = std::clamp(at - double(i), 0.0, 1.0);
    if (o.mode == Mode::bilinear) {
      add(i, 1 - t);
      return add(std::min(i + 1, last), t);
    }
    for (int64_t k = -1; k <= 2; k++)
      add(std::clamp<int64_t>(i + k, 0, last), cubic(t - double(k), -0.75));
  });
}

}  // namespace

Tensor interpolate(const Tensor& input, const InterpolateOptions& o) {
  using Mode = InterpolateOptions::Mode;
  require_floating("interpolate", input);
  PUPIL_CHECK(input.rank() == 4 && input.dim(2) > 0 && input.dim(3) > 0,
              "interpolate: (n,c,h,w) expected, got ", input.shape());
  bool smooth = o.mode == Mode::bilinear || o.mode == Mode::bicubic;
  PUPIL_CHECK(smooth || (!o.antialias && !o.align_corners),
              "interpolate: antialias and align_corners go with bilinear and bicubic, ",
              input.shape());
  bool sized = o.size != Pair(0), scaled = o.scale_h != 0 || o.scale_w != 0;
  PUPIL_CHECK(sized != scaled, "interpolate: a size or a scale expected for ", input.shape());
  Shape shape = input.shape();
  shape[2] = sized ? o.size.h : int64_t(std::floor(double(shape[2]) * o.scale_h));
  shape[3] = sized ? o.size.w : int64_t(std::floor(double(shape[3]) * o.scale_w));
  PUPIL_CHECK(shape[2] > 0 && shape[3] > 0, "interpolate: ", input.shape(), " to ", shape);
  Axis rows = interpolation_axis(input.dim(2), shape[2], o.scale_h, o, input.device());
  Axis columns = interpolation_axis(input.dim(3), shape[3], o.scale_w, o, input.device());
  return resampled("interpolate", to_strided(input), shape, rows, columns, 1);
}

Tensor adaptive_avg_pool2d(const Tensor& input, Pair size) {
  require_floating("adaptive_avg_pool2d", input);
  PUPIL_CHECK(input.rank() == 4 && input.dim(2) > 0 && input.dim(3) > 0 && size.h > 0 && size.w > 0,
              "adaptive_avg_pool2d: (n,c,h,w) to ", size.h, " x ", size.w, " cells, got ",
              input.shape());
  Shape shape{input.dim(0), input.dim(1), size.h, size.w};
  if (size == Pair(1)) return view(global_avg_pool(input), shape);
  auto axis = [&](int64_t inputs, int64_t cells) {
    return Axis(inputs, cells, input.device(), [=](int64_t cell, auto add) {
      int64_t begin = cell * inputs / cells, end = ((cell + 1) * inputs + cells - 1) / cells;
      for (int64_t i = begin; i < end; i++) add(i, 1 / double(end - begin));
    });
  };
  return resampled("adaptive_avg_pool2d", to_strided(input), shape, axis(input.dim(2), size.h),
                   axis(input.dim(3), size.w), 1);
}

Tensor resample_pos_embed(const Tensor& embed, int prefix, int h, int w, int new_h, int new_w) {
  require_floating("resample_pos_embed", embed);
  PUPIL_CHECK(embed.rank() == 3 && embed.dim(0) == 1 && prefix >= 0 && h > 0 && w > 0 &&
                  new_h > 0 && new_w > 0 && embed.dim(1) == prefix + int64_t(h) * w,
              "resample_pos_embed: (1, ", prefix, " + ", h, " x ", w, ", dim) to ", new_h, " x ",
              new_w, ", got ", embed.shape());
  if (h == new_h && w == new_w) return embed;
  Tensor kept = slice(embed, 1, 0, prefix), grid = slice(embed, 1, prefix, embed.dim(1));
  auto axis = [&](int inputs, int outputs) {
    return antialiased_axis(inputs, outputs, double(inputs) / outputs, true, embed.device());
  };
  Tensor y = resampled("resample_pos_embed", grid, {1, int64_t(new_h) * new_w, embed.dim(2)},
                       axis(h, new_h), axis(w, new_w), embed.dim(2));
  return cat({kept, y}, 1);
}

PUPIL_SAMPLES(interpolate) {
  auto with = [](InterpolateOptions o) { return [=](auto& v) { return interpolate(v[0], o); }; };
  using enum InterpolateOptions::Mode;
  s.add("nearest", {{2, 2, 4, 5}}, with({.mode = nearest, .size = {8, 7}}));
  s.add("nearest exact", {{1, 2, 7, 5}}, with({.mode = nearest_exact, .size = {3, 9}}));
  s.add("nearest scale", {{1, 2, 4, 5}}, with({.mode = nearest, .scale_h = 1.6, .scale_w = 0.5}));
  s.add("bilinear", {{1, 2, 4, 5}}, with({.mode = bilinear, .size = {7, 3}}));
  s.add("bilinear corners", {{1, 2, 4, 5}},
        with({.mode = bilinear, .size = {7, 1}, .align_corners = true}));
  s.add("bilinear scale", {{1, 2, 5, 5}}, with({.mode = bilinear, .scale_h = 1.3, .scale_w = 2.5}));
  s.add("bicubic", {{1, 3, 4, 4}}, with({.mode = bicubic, .size = {7, 3}}));
  s.add("bicubic corners", {{1, 1, 5, 4}},
        with({.mode = bicubic, .size = {3, 6}, .align_corners = true}));
  for (auto mode : {bilinear, bicubic})
    s.add(concat("antialias ", int(mode)), {{1, 2, 12, 5}},
          with({.mode = mode, .size = {5, 8}, .antialias = true}));
  s.add("one pixel", {{1, 1, 1, 1}}, with({.mode = bicubic, .size = 3}));
  s.add("to one row", {{1, 2, 3, 4}}, with({.mode = bilinear, .size = {1, 3}}));
  s.add("smaller rows", {{1, 2, 4, 5}}, with({.mode = bilinear, .scale_h = 0.5, .scale_w = 1.6}));
  s.add("empty", {{0, 2, 3, 3}}, with({.mode = bilinear, .size = 2}));
  s.add("permuted", {{2, 4, 5, 3}}, [](auto& v) {
    return interpolate(permute(v[0], {0, 3, 1, 2}), {.mode = bilinear, .size = {3, 7}});
  });
  s.add_error("no size", {{1, 1, 2, 2}}, with({.mode = nearest}));
  s.add_error("size and scale", {{1, 1, 2, 2}},
              with({.mode = nearest, .size = 2, .scale_h = 2, .scale_w = 2}));
  s.add_error("nearest with antialias", {{1, 1, 2, 2}},
              with({.mode = nearest, .size = 1, .antialias = true}));
  s.add_error("no pixels left", {{1, 1, 2, 2}},
              with({.mode = nearest, .scale_h = 0.1, .scale_w = 1}));
  s.add_error("rank", {{2, 2}}, with({.mode = nearest, .size = 2}));
}

PUPIL_SAMPLES(adaptive_avg_pool2d) {
  auto to = [](Pair size) { return [=](auto& v) { return adaptive_avg_pool2d(v[0], size); }; };
  s.add("uneven", {{1, 2, 7, 10}}, to({3, 4}));
  s.add("global", {{2, 3, 4, 5}}, to(1));
  s.add("more cells than pixels", {{1, 2, 2, 3}}, to({5, 3}));
  s.add("one pixel", {{1, 1, 1, 1}}, to(2));
  s.add("empty", {{0, 2, 4, 4}}, to(2));
  s.add("permuted", {{2, 5, 4, 3}}, [](auto& v) {
    return adaptive_avg_pool2d(permute(v[0], {0, 3, 1, 2}), 2);
  });
  s.add_error("size", {{1, 1, 2, 2}}, to(0));
}

PUPIL_SAMPLES(resample_pos_embed) {
  auto to = [](int prefix, int h, int w, int new_h, int new_w) {
    return [=](auto& v) { return resample_pos_embed(v[0], prefix, h, w, new_h, new_w); };
  };
  s.add("larger", {{1, 10, 2}}, to(1, 3, 3, 5, 4));
  s.add("smaller", {{1, 30, 2}}, to(0, 6, 5, 3, 2));
  s.add("two prefix rows", {{1, 14, 3}}, to(2, 4, 3, 2, 7));
  s.add("the same grid", {{1, 5, 2}}, to(1, 2, 2, 2, 2));
  s.add("the same width", {{1, 6, 2}}, to(0, 2, 3, 3, 3));
  s.add("the same height", {{1, 6, 2}}, to(0, 2, 3, 2, 2));
  s.add("one cell", {{1, 1, 1}}, to(0, 1, 1, 2, 2));
  s.add("to one cell", {{1, 7, 2}}, to(1, 2, 3, 1, 1));
  s.add("no width", {{1, 4, 0}}, to(0, 2, 2, 3, 3));
  s.add_error("grid", {{1, 10, 2}}, to(0, 3, 3, 5, 5));
}

}  // namespace pupil
