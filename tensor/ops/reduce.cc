// Sums over axes. A run of neighbouring reduced axes is one pass over (outer, reduced, inner); axes
// with a gap between them take several passes, whose partial results are kept in f32 (or f64).
#include "../../autograd/samples.h"
#include "../launch.h"
#include "broadcast.h"

namespace pupil {

// y[o, chunk] = sum of a part of row o, for inner = 1. Cutting long rows gives the GPU its blocks,
// the CPU its threads and float32 its accuracy; the cut depends on the length only.
template <class To, class From>
struct SumRows {
  const From* x;
  To* y;
  int64_t length, chunk, chunks;
  double factor;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    using A = acc_t<From>;
    int64_t begin = row % chunks * chunk;
    const From* p = x + row / chunks * length + begin;
    int64_t n = begin + chunk < length ? chunk : length - begin;
    A sum = team.reduce(n, A(0), Add{}, [&](int64_t i) { return A(p[i]); });
    To* out = y + row;
    A f = A(factor);
    team.each(1, [&](int64_t) { *out = To(sum * f); });
  }
};

// One outer index: columns are summed over their chunks.
template <class To, class From>
struct SumColumns {
  using Sum = acc_t<From>;
  const From* x;
  To* y;
  int64_t inner;
  double factor;
  PUPIL_HD Sum value(int64_t row, int64_t col) const { return Sum(x[row * inner + col]); }
  PUPIL_HD void store(int64_t col, Sum sum) const { y[col] = To(sum * Sum(factor)); }
};

// Many outer indices, inner > 1: one result per thread, neighbours read neighbours.
template <class To, class From>
struct SumMiddle {
  const From* x;
  To* y;
  int64_t length, inner;
  double factor;
  PUPIL_HD void operator()(int64_t i) const {
    using A = acc_t<From>;
    const From* p = x + i / inner * length * inner + i % inner;
    A sum = 0;
    for (int64_t k = 0; k < length; k++) sum += A(p[k * inner]);
    y[i] = To(sum * A(factor));
  }
};

namespace {

constexpr int64_t kChunk = 4096;

float simd_sum(const float* x, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += x[i];
  return sum;
}

void cpu_sum_rows(const float* x, float* y, int64_t rows, int64_t length, int64_t chunk,
                  int64_t chunks, float factor) {
  parallel_for(rows * chunks, rows * length, [=](int64_t row) {
    int64_t begin = row % chunks * chunk;
    y[row] = factor * simd_sum(x + row / chunks * length + begin, std::min(chunk, length - begin));
  });
}

void cpu_sum_middle(const float* x, float* y, int64_t outer, int64_t length, int64_t inner,
                    float factor) {
  parallel_for(outer, outer * length * inner, [=](int64_t o) {
    float* out = y + o * inner;
    std::fill_n(out, inner, 0.0f);
    for (int64_t k = 0; k < length; k++) {
      const float* p = x + (o * length + k) * inner;
#pragma omp simd
      for (int64_t i = 0; i < inner; i++) out[i] += p[i];
    }
    for (int64_t i = 0; i < inner; i++) out[i] *= factor;
  });
}

// x (outer, length, inner) contiguous -> (outer * inner) in dtype `to`.
Tensor sum_run(const Tensor& x, int64_t outer, int64_t length, int64_t inner, DType to,
               double factor) {
  Device device = x.device();
  if (inner == 1 && length > kChunk) {  // two stages
    int64_t chunks = (length + kChunk - 1) / kChunk;
    DType wide = acc_dtype(x.dtype());
    Tensor partial = empty({outer * chunks}, wide, device);
    dispatch(x.dtype(), [&](auto from) {
      using From = typename decltype(from)::type;
      using A = acc_t<From>;
      if (cpu_fast(x.dtype(), device))
        cpu_sum_rows(static_cast<const float*>(x.raw()), static_cast<float*>(partial.raw()), outer,
                     length, kChunk, chunks, 1);
      else
        rows(device, outer * chunks,
             SumRows<A, From>{x.data<From>(), partial.data<A>(), length, kChunk, chunks, 1},
             kChunk);
    });
    return sum_run(partial, outer, chunks, 1, to, factor);
  }
  Tensor y = empty({outer * inner}, to, device);
  if (cpu_fast(x.dtype(), device) && to == DType::f32 && (inner == 1 || outer > 1)) {
    const float* p = x.data<float>();
    if (inner == 1)
      cpu_sum_rows(p, y.data<float>(), outer, length, std::max<int64_t>(length, 1), 1,
                   float(factor));
    else
      cpu_sum_middle(p, y.data<float>(), outer, length, inner, float(factor));
    return y;
  }
  dispatch(x.dtype(), [&](auto from) {
    dispatch(to, [&](auto t) {
      using From = typename decltype(from)::type;
      using To = typename decltype(t)::type;
      const From* p = x.data<From>();
      if (inner == 1)
        rows(device, outer, SumRows<To, From>{p, y.data<To>(), length, length, 1, factor}, length);
      else if (outer == 1)
        cols(device, length, inner, SumColumns<To, From>{p, y.data<To>(), inner, factor});
      else
        map(device, outer * inner, SumMiddle<To, From>{p, y.data<To>(), length, inner, factor});
    });
  });
  return y;
}

// x summed over the marked axes and scaled, the marked axes kept with size 1. Not recorded.
Tensor sum_axes(const Tensor& input, const bool (&reduced)[kMaxRank], double factor) {
  Tensor x = input.contiguous();
  Shape shape = x.shape();
  int remaining = 0;  // runs of reduced axes
  for (int d = 0; d < shape.rank; d++) remaining += reduced[d] && (d == 0 || !reduced[d - 1]);
  DType final = x.dtype(), wide = acc_dtype(final);
  for (int d = shape.rank - 1; d >= 0; d--) {
    if (!reduced[d]) continue;
    int64_t outer = 1, length = 1, inner = 1;
    for (int k = d + 1; k < shape.rank; k++) inner *= shape[k];
    for (; d >= 0 && reduced[d]; d--) {
      length *= shape[d];
      shape[d] = 1;
    }
    for (int k = 0; k <= d; k++) outer *= shape[k];
    bool last = --remaining == 0;
    x = sum_run(x, outer, length, inner, last ? final : wide, last ? factor : 1);
  }
  return alias(x, shape, row_major_strides(shape));
}

Tensor reduce(const char* op, const Tensor& x, const std::vector<int>& axes, bool keep, bool mean) {
  require_floating(op, x);
  ReducedAxes to = reduced_axes(op, x.shape(), axes);
  PUPIL_CHECK(!mean || to.count > 0, op, ": of no elements, ", x.shape());
  double factor = mean ? 1.0 / double(to.count) : 1.0;
  Tensor y = sum_axes(x, to.marked, factor);
  if (!keep) y = alias(y, to.dropped, row_major_strides(to.dropped));
  Shape shape = x.shape();
  return record(op, y, {x}, {{"axes", to.axes}}, [kept = to.kept, shape, factor](Backward& b) {
    Tensor g = factor == 1 ? b.gy.contiguous() : scale(b.gy, factor);
    Shape strides = row_major_strides(kept);
    for (int d = 0; d < kept.rank; d++)
      if (kept[d] != shape[d]) strides[d] = 0;
    Tensor gx = empty(shape, g.dtype(), g.device());
    copy_into(gx, alias(g, shape, strides));
    b[0].give(std::move(gx));
  });
}

}  // namespace

int checked_axis(const char* op, const Shape& x, int axis) {
  int d = axis < 0 ? axis + x.rank : axis;
  PUPIL_CHECK(d >= 0 && d < x.rank, op, ": axis ", axis, " of ", x);
  return d;
}

ReducedAxes reduced_axes(const char* op, const Shape& x, const std::vector<int>& axes) {
  ReducedAxes to;
  for (int axis : axes) {
    int d = checked_axis(op, x, axis);
    PUPIL_CHECK(!to.marked[d], op, ": axis ", axis, " twice for ", x);
    to.marked[d] = true;
  }
  for (int d = 0; d < x.rank; d++) {
    if (axes.empty()) to.marked[d] = true;
    to.kept.dims[to.kept.rank++] = to.marked[d] ? 1 : x[d];
    if (!to.marked[d]) to.dropped.dims[to.dropped.rank++] = x[d];
    if (!to.marked[d]) continue;
    to.count *= x[d];
    to.axes.dims[to.axes.rank++] = d;
  }
  return to;
}

Tensor sum_to(const Tensor& x, const Shape& target) {
  if (x.shape() == target) return x;
  if (x.layout() != Layout::strided && target == Shape{x.dim(0), x.dim(1), 1, 1}) {
    NoGrad unrecorded;
    return view(scale(global_avg_pool(x), double(x.dim(2) * x.dim(3))), target);
  }
  bool reduced[kMaxRank]{};
  int shift = x.rank() - target.rank;
  for (int d = 0; d < x.rank(); d++)
    reduced[d] = d < shift || (target[d - shift] == 1 && x.dim(d) != 1);
  return alias(sum_axes(x, reduced, 1), target, row_major_strides(target));
}

Tensor sum(const Tensor& x, std::vector<int> axes, bool keep) {
  return reduce("sum", x, axes, keep, false);
}
Tensor mean(const Tensor& x, std::vector<int> axes, bool keep) {
  return reduce("mean", x, axes, keep, true);
}

namespace {

[[maybe_unused]] void reduce_samples(auto& s, Tensor (*f)(const Tensor&, std::vector<int>, bool)) {
  auto over = [f](std::vector<int> axes, bool keep = false) {
    return [=](auto& v) { return f(v[0], axes, keep); };
  };
  s.add("all", {{7, 9}}, over({}));
  s.add("all of a long vector", {{9001}}, over({}));
  s.add("rows", {{5, 131}}, over({-1}));
  s.add("columns", {{70, 5}}, over({0}));
  s.add("middle", {{3, 4, 5}}, over({1}));
  s.add("space", {{2, 3, 4, 5}}, over({2, 3}, true));
  s.add("channels", {{2, 3, 4, 5}}, over({0, 2, 3}));
  s.add("gaps, kept", {{2, 3, 2, 3, 2}}, over({0, 2, 4}, true));
  s.add("scalar", {{}}, over({}));
  s.add("one element", {{1, 1}}, over({0}));
  s.add("no columns left", {{3, 0}}, over({0}));
  s.add("transposed", {{4, 3}}, [f](auto& v) { return f(permute(v[0], {1, 0}), {1}, false); });
  s.add_error("integers", {{3}}, [f](auto& v) { return f(v[0].to(DType::i64), {}, false); });
  s.add_error("axis", {{2, 3}}, over({2}));
  s.add_error("axis twice", {{2, 3}}, over({1, -1}));
}

}  // namespace

PUPIL_SAMPLES(sum) {
  reduce_samples(s, sum);
  s.add("of nothing", {{0, 3}}, [](auto& v) { return sum(v[0], {0}); });
}
PUPIL_SAMPLES(mean) {
  reduce_samples(s, mean);
  s.add_error("of nothing", {{0, 3}}, [](auto& v) { return mean(v[0], {0}); });
}

}  // namespace pupil
