#include <array>

#include "../../autograd/samples.h"
#include "../launch.h"
#include "../ops.h"
#include "gemm.h"

namespace pupil {

// One team per element of c; the summed axes are k and the batch axes that c does not have.
template <class T, class To>
struct GemmReference {
  const T *a, *b;
  const To* bias;
  To* c;
  float beta;
  NdIndex<3> element;   // batch axes, m, n
  NdIndex<2> products;  // summed batch axes, k
  int64_t count;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t e) const {
    using A = acc_t<T>;
    int64_t at[3];
    element.offsets(e, at);
    A sum = team.reduce(count, A(0), Add{}, [&](int64_t p) {
      int64_t step[2] = {p * products.strides[0][0], p * products.strides[1][0]};
      if (products.rank > 1) products.offsets(p, step);
      return A(a[at[0] + step[0]]) * A(b[at[1] + step[1]]);
    });
    team.each(1, [&](int64_t) {
      if (bias) sum = sum + A(bias[e % element.dims[element.rank - 1]]);
      if (beta != 0) sum = sum + A(beta) * A(c[at[2]]);
      c[at[2]] = To(sum);
    });
  }
};

template <class T, class To>
struct ColumnSum {
  using Sum = acc_t<T>;
  const T* g;
  To* to;
  int64_t stride;
  float beta;
  PUPIL_HD Sum value(int64_t row, int64_t col) const { return Sum(g[row * stride + col]); }
  PUPIL_HD void store(int64_t col, Sum sum) const {
    to[col] = To(beta == 0 ? sum : sum + Sum(beta) * Sum(to[col]));
  }
};

namespace {

// run(tag of the operands, tag of the result), which is as the operands or in their acc_t.
template <class Run>
void dispatch_result(DType from, DType to, const Run& run) {
  dispatch(from, [&](auto t) {
    using T = typename decltype(t)::type;
    if (to == from)
      run(t, t);
    else
      run(t, tag<acc_t<T>>{});
  });
}

int64_t axis_size(const Tensor& t, int axis, int rank) {  // axes counted as if t had `rank` axes
  int own = axis - (rank - t.rank());
  return own < 0 ? 1 : t.dim(own);
}

int64_t axis_stride(const Tensor& t, int axis, int rank) {  // 0 where t repeats
  int own = axis - (rank - t.rank());
  return own < 0 || t.dim(own) == 1 ? 0 : t.strides().dims[own];
}

void gemm_reference(const Tensor& a, const Tensor& b, const Tensor& c, float beta,
                    const Tensor& bias) {
  int rank = std::max({a.rank(), b.rank(), c.rank()});
  NdIndex<3> element;
  NdIndex<2> products;
  int64_t elements = 1, count = 1;
  for (int axis = 0; axis < rank - 2; axis++) {
    int64_t both = std::max(axis_size(a, axis, rank), axis_size(b, axis, rank));
    if (std::min(axis_size(a, axis, rank), axis_size(b, axis, rank)) == 0) both = 0;
    int64_t step[3] = {axis_stride(a, axis, rank), axis_stride(b, axis, rank),
                       axis_stride(c, axis, rank)};
    if (axis_size(c, axis, rank) == both) {
      element.dims[element.rank] = both;
      for (int t = 0; t < 3; t++) element.strides[t][element.rank] = step[t];
      element.rank++;
      elements *= both;
    } else {
      products.dims[products.rank] = both;
      for (int t = 0; t < 2; t++) products.strides[t][products.rank] = step[t];
      products.rank++;
      count *= both;
    }
  }
  int64_t m = c.dim(-2), n = c.dim(-1), k = a.dim(-1);
  for (auto [size, in_a, in_b, in_c] :
       {std::array<int64_t, 4>{m, a.strides()[-2], 0, c.strides()[-2]},
        std::array<int64_t, 4>{n, 0, b.strides()[-1], c.strides()[-1]}}) {
    element.dims[element.rank] = size;
    element.strides[0][element.rank] = in_a;
    element.strides[1][element.rank] = in_b;
    element.strides[2][element.rank] = in_c;
    element.rank++;
  }
  products.dims[products.rank] = k;
  products.strides[0][products.rank] = a.strides()[-1];
  products.strides[1][products.rank] = b.strides()[-2];
  products.rank++;
  count *= k;
  elements *= m * n;
  Tensor offset = bias ? bias.to(c.dtype()) : bias;
  dispatch_result(a.dtype(), c.dtype(), [&](auto t, auto to) {
    using T = typename decltype(t)::type;
    using To = typename decltype(to)::type;
    rows(c.device(), elements,
         GemmReference<T, To>{a.data<T>(), b.data<T>(), offset ? offset.data<To>() : nullptr,
                              c.data<To>(), beta, element, products, count},
         count);
  });
}

// oneDNN's product, or false where it has none. Axes are merged as far as the strides allow, so
// that a batch of rows times one matrix is one product.
bool gemm_fast(const Tensor& a, const Tensor& b, const Tensor& c, float beta, const Tensor& bias,
               const onednn::RowsDone& done) {
  onednn::Matmul mm;
  mm.beta = beta;
  mm.dtype = a.dtype();
  mm.out = c.dtype();
  mm.m = {c.dim(-2), a.strides()[-2], 0, c.strides()[-2]};
  mm.n = {c.dim(-1), 0, b.strides()[-1], c.strides()[-1]};
  mm.k = {a.dim(-1), a.strides()[-1], b.strides()[-2], 0};
  int rank = std::max({a.rank(), b.rank(), c.rank()});
  for (int axis = rank - 3; axis >= 0; axis--) {
    onednn::Matmul::Axis x{
        std::max({axis_size(a, axis, rank), axis_size(b, axis, rank), axis_size(c, axis, rank)}),
        axis_stride(a, axis, rank), axis_stride(b, axis, rank), axis_stride(c, axis, rank)};
    auto& inner = mm.batch;
    if (x.size == 1) continue;
    if (axis_size(c, axis, rank) == 1) {  // summed
      if (x.in_a != mm.k.size * mm.k.in_a || x.in_b != mm.k.size * mm.k.in_b) return false;
      mm.k.size *= x.size;
    } else if (!x.in_b && x.in_a == mm.m.size * mm.m.in_a && x.in_c == mm.m.size * mm.m.in_c)
      mm.m.size *= x.size;
    else if (!inner.empty() && x.in_a == inner.front().size * inner.front().in_a &&
             x.in_b == inner.front().size * inner.front().in_b &&
             x.in_c == inner.front().size * inner.front().in_c)
      inner.front().size *= x.size;
    else
      inner.insert(inner.begin(), x);
  }
  // An axis of one element has any stride; a matrix needs one dense axis.
  if (mm.k.size == 1) mm.k.in_a = 1, mm.k.in_b = mm.n.size;
  if (mm.n.size == 1) mm.n.in_c = 1, mm.n.in_b = mm.k.in_b == 1 ? mm.k.size : 1;
  if (mm.m.size == 1) mm.m.in_a = mm.k.in_a == 1 ? mm.k.size : 1, mm.m.in_c = mm.n.in_c * mm.n.size;
  auto dense = [](int64_t rows, int64_t row, int64_t columns, int64_t column) {
    return (column == 1 && row >= columns) || (row == 1 && column >= rows);
  };
  if (mm.n.in_c != 1 || mm.m.in_c < mm.n.size ||
      !dense(mm.m.size, mm.m.in_a, mm.k.size, mm.k.in_a) ||
      !dense(mm.k.size, mm.k.in_b, mm.n.size, mm.n.in_b))
    return false;
  Tensor offset = bias ? bias.to(DType::f32) : bias;
  return onednn::matmul(mm, a.raw(), b.raw(), offset ? offset.data<float>() : nullptr, c.raw(),
                        done);
}

}  // namespace

void gemm(const Tensor& a, const Tensor& b, const Tensor& c, float beta, const Tensor& bias,
          const onednn::RowsDone& done) {
  auto finish = [&] { onednn::each_step(done, c.dim(-2), c.dim(-1)); };
  if (c.numel() == 0) return finish();
  bool sums = a.numel() > 0 && b.numel() > 0;  // else c is a sum of no products
  if (sums && cpu_fast(acc_dtype(c.dtype()), c.device())) {
    if (gemm_fast(a, b, c, beta, bias, done)) return;
    // c^T = b^T a^T
    if (!bias && gemm_fast(transposed(b), transposed(a), transposed(c), beta, {}, {}))
      return finish();
  }
  gemm_reference(a, b, c, beta, bias);
  finish();
}

Tensor transposed(const Tensor& x) {
  Shape shape = x.shape(), strides = x.strides();
  std::swap(shape[-1], shape[-2]);
  std::swap(strides[-1], strides[-2]);
  return alias(x, shape, strides);
}

Tensor as_matrix(const Tensor& x) {
  int64_t columns = x.dim(-1), count = 1;
  for (int d = 0; d < x.rank() - 1; d++) count *= x.dim(d);
  bool even = x.layout() == Layout::strided && (columns == 1 || x.strides()[-1] == 1);
  int64_t stride = columns, expected = 0;  // of rows
  for (int d = x.rank() - 2; even && d >= 0; d--) {
    if (x.dim(d) == 1) continue;
    if (!expected)
      stride = x.strides()[d];
    else if (x.strides()[d] != expected)
      even = false;
    expected = x.strides()[d] * x.dim(d);
  }
  Tensor source = even ? x : x.contiguous();
  return alias(source, {count, columns}, {even ? stride : columns, 1});
}

void column_sum(const Tensor& g, const Tensor& to, float beta) {
  PUPIL_CHECK(g.strides()[-1] == 1 || g.dim(1) <= 1, "column_sum: rows must be dense");
  dispatch_result(g.dtype(), to.dtype(), [&](auto t, auto result) {
    using T = typename decltype(t)::type;
    using To = typename decltype(result)::type;
    cols(g.device(), g.dim(0), g.dim(1),
         ColumnSum<T, To>{g.data<T>(), to.data<To>(), g.strides()[0], beta});
  });
}

ColumnSums::ColumnSums(const Tensor& g) : g_(g) {
  partial_ = empty({(g.dim(0) + onednn::kRowStep - 1) / onednn::kRowStep, g.dim(1)});
}

void ColumnSums::add(int64_t begin, int64_t end) const {
  int64_t columns = g_.dim(1);
  auto add_rows = [&](auto t) {
    using T = typename decltype(t)::type;
    ColumnSum<T, float> k{g_.data<T>(), nullptr, g_.strides()[0], 0};
    for (int64_t row = begin; row < end; row += onednn::kRowStep)
      sum_rows(k, row, std::min(end, row + onednn::kRowStep), columns,
               partial_.data<float>() + row / onednn::kRowStep * columns);
  };
  g_.dtype() == DType::bf16 ? add_rows(tag<bf16>{}) : add_rows(tag<float>{});
}

void ColumnSums::finish(const Tensor& to, float beta) const {
  Tensor sum = empty(to.shape());
  column_sum(partial_, sum, 0);
  dispatch_result(g_.dtype(), to.dtype(), [&](auto t, auto result) {
    using T = typename decltype(t)::type;
    using To = typename decltype(result)::type;
    if constexpr (std::is_same_v<acc_t<T>, float>)
      map(to.device(), to.numel(),
          ColumnFinish<ColumnSum<T, To>, float>{
              {nullptr, to.data<To>(), 0, beta}, sum.data<float>(), 1, to.numel()});
  });
}

Tensor matmul(const Tensor& a, const Tensor& b, bool ta, bool tb) {
  PUPIL_CHECK(a.rank() >= 2 && b.rank() >= 2, "matmul: matrices expected, got ", a.shape(), " and ",
              b.shape());
  PUPIL_CHECK(a.dtype() == b.dtype() && a.device() == b.device(), "matmul: ", name_of(a.dtype()),
              " and ", name_of(b.dtype()), " operands (or two devices): convert one");
  Tensor left = a.layout() == Layout::strided ? a.detach() : a.contiguous().detach();
  Tensor right = b.layout() == Layout::strided ? b.detach() : b.contiguous().detach();
  if (ta) left = transposed(left);
  if (tb) right = transposed(right);
  PUPIL_CHECK(left.dim(-1) == right.dim(-2), "matmul: inner dimensions differ: ", a.shape(),
              ta ? "^T" : "", " x ", b.shape(), tb ? "^T" : "");
  int rank = std::max(a.rank(), b.rank());
  Shape shape;
  shape.rank = rank;
  for (int axis = 0; axis < rank - 2; axis++) {
    int64_t p = axis_size(left, axis, rank), q = axis_size(right, axis, rank);
    PUPIL_CHECK(p == q || p == 1 || q == 1, "matmul: batch axes of ", a.shape(), " and ", b.shape(),
                " do not broadcast");
    shape.dims[axis] = p == 1 ? q : p;
  }
  shape[-2] = left.dim(-2);
  shape[-1] = right.dim(-1);
  Tensor c = empty(shape, a.dtype(), a.device());
  gemm(left, right, c);
  Tensor saved_left = b.requires_grad() ? left : Tensor();
  Tensor saved_right = a.requires_grad() ? right : Tensor();
  return record("matmul", c, {a, b}, {{"ta", ta}, {"tb", tb}}, [=](Backward& grad) {
    float beta;
    if (grad[0].needed) {  // g b^T
      Tensor to = grad[0].into(beta);
      gemm(grad.gy, transposed(saved_right), ta ? transposed(to) : to, beta);
    } else
      grad[0].none();
    if (grad[1].needed) {  // a^T g
      Tensor to = grad[1].into(beta);
      gemm(transposed(saved_left), grad.gy, tb ? transposed(to) : to, beta);
    } else
      grad[1].none();
  });
}

PUPIL_SAMPLES(matmul) {
  s.add("nn", {{3, 4}, {4, 5}}, [](auto& v) { return matmul(v[0], v[1]); });
  s.add("nt", {{3, 4}, {5, 4}}, [](auto& v) { return matmul(v[0], v[1], false, true); });
  s.add("tn", {{4, 3}, {4, 5}}, [](auto& v) { return matmul(v[0], v[1], true, false); });
  s.add("tt", {{4, 3}, {5, 4}}, [](auto& v) { return matmul(v[0], v[1], true, true); });
  s.add("one", {{1, 1}, {1, 1}}, [](auto& v) { return matmul(v[0], v[1]); });
  s.add("batch", {{2, 3, 4, 5}, {2, 3, 5, 2}}, [](auto& v) { return matmul(v[0], v[1]); });
  s.add("broadcast both", {{2, 1, 4, 5}, {3, 5, 2}}, [](auto& v) { return matmul(v[0], v[1]); });
  s.add("broadcast right", {{6, 4, 5}, {3, 5}},
        [](auto& v) { return matmul(v[0], v[1], false, true); });
  s.add("broadcast left", {{4, 5}, {3, 5, 2}}, [](auto& v) { return matmul(v[0], v[1]); });
  s.add("permuted", {{3, 2, 4}, {2, 4, 3}}, [](auto& v) {
    return matmul(permute(v[0], {1, 0, 2}), v[1]);
  });
  s.add("permuted, broadcast right", {{4, 6, 5}, {5, 3}}, [](auto& v) {
    return matmul(permute(v[0], {1, 0, 2}), v[1]);
  });
  s.add("sliced", {{4, 6}, {3, 2}}, [](auto& v) { return matmul(slice(v[0], 1, 1, 4), v[1]); });
  s.add("empty rows", {{0, 4}, {4, 5}}, [](auto& v) { return matmul(v[0], v[1]); });
  s.add("empty sum", {{3, 0}, {0, 5}}, [](auto& v) { return matmul(v[0], v[1]); });
  s.add("empty batch", {{0, 3, 4}, {4, 5}}, [](auto& v) { return matmul(v[0], v[1]); });
  s.add_error("inner", {{3, 4}, {5, 6}}, [](auto& v) { return matmul(v[0], v[1]); });
  s.add_error("vector", {{3}, {3, 6}}, [](auto& v) { return matmul(v[0], v[1]); });
  s.add_error("batch", {{2, 3, 4}, {3, 4, 5}}, [](auto& v) { return matmul(v[0], v[1]); });
}

}  // namespace pupil
