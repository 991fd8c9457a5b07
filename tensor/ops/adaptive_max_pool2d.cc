// Cell (p, q) of h x w takes the maximum of rows floor(p H / h) .. ceil((p + 1) H / h) and of such
// columns; cells overlap when the sizes do not divide.
#include "../../autograd/samples.h"
#include "../launch.h"
#include "broadcast.h"

namespace pupil {

struct Cells {
  int64_t inputs, cells;
  PUPIL_HD int64_t begin(int64_t cell) const { return cell * inputs / cells; }
  PUPIL_HD int64_t end(int64_t cell) const { return ((cell + 1) * inputs + cells - 1) / cells; }
  // The cells that contain an input.
  PUPIL_HD int64_t first(int64_t input) const { return input * cells / inputs; }
  PUPIL_HD int64_t last(int64_t input) const { return ((input + 1) * cells - 1) / inputs; }
};

template <class T>
struct AdaptiveMaxForward {
  Cells rows, columns;
  const T* x;
  T* y;
  int64_t* winner;  // the pixel of the image plane
  PUPIL_HD void operator()(int64_t i) const {
    using A = acc_t<T>;
    int64_t q = i % columns.cells, p = i / columns.cells % rows.cells;
    const T* plane = x + i / columns.cells / rows.cells * rows.inputs * columns.inputs;
    int64_t best = rows.begin(p) * columns.inputs + columns.begin(q);
    for (int64_t h = rows.begin(p); h < rows.end(p); h++)
      for (int64_t w = columns.begin(q); w < columns.end(q); w++) {
        int64_t at = h * columns.inputs + w;
        if (A(plane[at]) > A(plane[best]) || A(plane[at]) != A(plane[at])) best = at;
      }
    y[i] = plane[best];
    winner[i] = best;
  }
};

template <class T>
struct AdaptiveMaxBackward {
  Cells rows, columns;
  const T* gy;
  const int64_t* winner;
  T* gx;
  PUPIL_HD void operator()(int64_t i) const {
    using A = acc_t<T>;
    int64_t pixels = rows.inputs * columns.inputs, at = i % pixels, plane = i / pixels;
    int64_t h = at / columns.inputs, w = at % columns.inputs;
    A sum = 0;
    for (int64_t p = rows.first(h); p <= rows.last(h); p++)
      for (int64_t q = columns.first(w); q <= columns.last(w); q++) {
        int64_t cell = (plane * rows.cells + p) * columns.cells + q;
        if (winner[cell] == at) sum = sum + A(gy[cell]);
      }
    gx[i] = T(sum);
  }
};

Tensor adaptive_max_pool2d(const Tensor& input, Pair size) {
  require_floating("adaptive_max_pool2d", input);
  PUPIL_CHECK(input.rank() == 4 && input.dim(2) > 0 && input.dim(3) > 0 && size.h > 0 && size.w > 0,
              "adaptive_max_pool2d: (n,c,h,w) to ", size.h, " x ", size.w, " cells, got ",
              input.shape());
  Tensor source = to_strided(input), x = source.contiguous().detach();
  Cells rows{x.dim(2), size.h}, columns{x.dim(3), size.w};
  Tensor y = empty({x.dim(0), x.dim(1), size.h, size.w}, x.dtype(), x.device());
  Tensor winner = empty(y.shape(), DType::i64, x.device());
  dispatch(x.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    map(x.device(), y.numel(),
        AdaptiveMaxForward<T>{rows, columns, x.data<T>(), y.data<T>(), winner.data<int64_t>()});
  });
  return record("adaptive_max_pool2d", y, {source},
                [rows, columns, winner, shape = x.shape()](Backward& b) {
                  Tensor gy = b.gy.contiguous(), gx = empty(shape, gy.dtype(), gy.device());
                  dispatch(gy.dtype(), [&](auto t) {
                    using T = typename decltype(t)::type;
                    map(gx.device(), gx.numel(),
                        AdaptiveMaxBackward<T>{rows, columns, gy.data<T>(), winner.data<int64_t>(),
                                               gx.data<T>()});
                  });
                  b[0].give(std::move(gx));
                });
}

PUPIL_SAMPLES(adaptive_max_pool2d) {
  auto to = [](Pair size) { return [=](auto& v) { return adaptive_max_pool2d(v[0], size); }; };
  s.add("2x2", {{2, 3, 5, 5}}, to(2));
  s.add("uneven", {{1, 2, 7, 10}}, to({3, 4}));
  s.add("more cells than pixels", {{1, 2, 2, 3}}, to({5, 3}));
  s.add("one pixel", {{1, 1, 1, 1}}, to(1));
  s.add("empty", {{0, 2, 4, 4}}, to(2));
  s.add("permuted", {{2, 5, 4, 3}}, [](auto& v) {
    return adaptive_max_pool2d(permute(v[0], {0, 3, 1, 2}), 2);
  });
  s.add_error("size", {{1, 1, 2, 2}}, to(0));
}

}  // namespace pupil
