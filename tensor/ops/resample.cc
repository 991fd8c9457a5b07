// Position embeddings on another grid: separable bicubic interpolation with antialias. Weights are
// made on the host in f64, as in timm 1.0 (resample_abs_pos_embed) and PyTorch (interpolate,
// antialias=True): Keys' kernel with a = -0.5, widened by the shrink factor, normalised per output.
#include <algorithm>

#include "../../autograd/samples.h"
#include "../launch.h"
#include "../ops.h"
#include "broadcast.h"

namespace pupil {

// y[p, q, d] = sum_ij wy[p, i] wx[q, j] x[i, j, d]; the strides of the weights choose between the
// matrix and its transpose (the adjoint).
template <class T>
struct ResampleGrid {
  const T* x;
  T* y;
  const double *wy, *wx;
  int64_t wy_out, wy_in, wx_out, wx_in;  // strides
  int64_t h, w, new_w, dim;
  PUPIL_HD void operator()(int64_t k) const {
    int64_t d = k % dim, q = k / dim % new_w, p = k / dim / new_w;
    double sum = 0;
    for (int64_t i = 0; i < h; i++) {
      double row = 0, factor = wy[p * wy_out + i * wy_in];
      if (factor == 0) continue;
      for (int64_t j = 0; j < w; j++)
        row += wx[q * wx_out + j * wx_in] * double(acc_t<T>(x[(i * w + j) * dim + d]));
      sum += factor * row;
    }
    y[k] = T(acc_t<T>(sum));
  }
};

namespace {

double cubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

// (outputs, inputs): the share of each input in each output along one axis.
Tensor axis_weights(int inputs, int outputs, Device device) {
  std::vector<double> weights(size_t(inputs) * size_t(outputs));
  double ratio = double(inputs) / outputs, widen = std::max(ratio, 1.0), support = 2 * widen;
  for (int o = 0; o < outputs; o++) {
    double centre = (o + 0.5) * ratio, total = 0;
    int begin = std::max(0, int(centre - support + 0.5));
    int end = std::min(inputs, int(centre + support + 0.5));
    double* row = weights.data() + size_t(o) * size_t(inputs);
    for (int i = begin; i < end; i++) total += row[i] = cubic((i + 0.5 - centre) / widen);
    for (int i = begin; i < end; i++) row[i] /= total;
  }
  return from(weights, {outputs, inputs}).to(device);
}

}  // namespace

Tensor resample_pos_embed(const Tensor& embed, int prefix, int h, int w, int new_h, int new_w) {
  require_floating("resample_pos_embed", embed);
  PUPIL_CHECK(embed.rank() == 3 && embed.dim(0) == 1 && prefix >= 0 && h > 0 && w > 0 &&
                  new_h > 0 && new_w > 0 && embed.dim(1) == prefix + int64_t(h) * w,
              "resample_pos_embed: (1, ", prefix, " + ", h, " x ", w, ", dim) to ", new_h, " x ",
              new_w, ", got ", embed.shape());
  if (h == new_h && w == new_w) return embed;
  Tensor wy = axis_weights(h, new_h, embed.device()), wx = axis_weights(w, new_w, embed.device());
  Tensor kept = slice(embed, 1, 0, prefix), grid = slice(embed, 1, prefix, embed.dim(1));
  int64_t dim = embed.dim(2);
  auto apply = [=](const Tensor& source, bool adjoint) {
    int64_t in_h = adjoint ? new_h : h, in_w = adjoint ? new_w : w;
    int64_t out_h = adjoint ? h : new_h, out_w = adjoint ? w : new_w;
    Tensor x = source.contiguous(), y = empty({1, out_h * out_w, dim}, x.dtype(), x.device());
    dispatch(x.dtype(), [&](auto t) {
      using T = typename decltype(t)::type;
      map(x.device(), y.numel(),
          ResampleGrid<T>{x.data<T>(), y.data<T>(), wy.data<double>(), wx.data<double>(),
                          adjoint ? 1 : h, adjoint ? h : 1, adjoint ? 1 : w, adjoint ? w : 1, in_h,
                          in_w, out_w, dim});
    });
    return y;
  };
  Tensor resampled = record("resample_pos_embed", apply(grid, false), {grid},
                            [apply](Backward& b) { b[0].give(apply(b.gy, true)); });
  return cat({kept, resampled}, 1);
}

PUPIL_SAMPLES(resample_pos_embed) {
  auto to = [](int prefix, int h, int w, int new_h, int new_w) {
    return [=](auto& v) { return resample_pos_embed(v[0], prefix, h, w, new_h, new_w); };
  };
  s.add("larger", {{1, 10, 2}}, to(1, 3, 3, 5, 4));
  s.add("smaller", {{1, 30, 2}}, to(0, 6, 5, 3, 2));
  s.add("two prefix rows", {{1, 14, 3}}, to(2, 4, 3, 2, 7));
  s.add("the same grid", {{1, 5, 2}}, to(1, 2, 2, 2, 2));
  s.add("one cell", {{1, 1, 1}}, to(0, 1, 1, 2, 2));
  s.add("no width", {{1, 4, 0}}, to(0, 2, 2, 3, 3));
  s.add_error("grid", {{1, 10, 2}}, to(0, 3, 3, 5, 5));
}

}  // namespace pupil
