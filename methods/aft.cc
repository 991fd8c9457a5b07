#include "aft.h"

#include "../autograd/samples.h"
#include "../tensor/launch.h"
#include "aft_cpu.h"
#include "method.h"

namespace pupil::methods {

constexpr double kNormEps = 1e-8;   // added to a row's norm, outside the root
constexpr double kDeltaEps = 1e-8;  // added to the mean square, inside the root

template <class A>
PUPIL_HD A logistic(A x) {
  return x >= A(0) ? A(1) / (A(1) + exp(-x)) : exp(x) / (A(1) + exp(x));
}

template <class A>
struct Weights {  // [aft 1] w = sigmoid(s)
  const A* s;
  A* w;
  PUPIL_HD void operator()(int64_t i) const { w[i] = logistic(s[i]); }
};

// [aft 3] Means of columns, counted from the first row: exact when all rows are equal.
template <class A>
struct ColumnMean {
  using Sum = A;
  const A* x;
  A* mean;
  int64_t n, columns;
  PUPIL_HD A value(int64_t row, int64_t col) const { return x[row * columns + col] - x[col]; }
  PUPIL_HD void store(int64_t col, A sum) const { mean[col] = x[col] + sum / A(n); }
};

// [aft 2] [aft 4] z = (x - mean) w / (norm + eps) and the norm of each row; w null: no weights.
template <class A>
struct UnitRow {
  const A *x, *w, *mean;
  A *z, *norm;
  int64_t columns;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    const A* p = x + row * columns;
    auto centred = [&](int64_t j) { return (p[j] - mean[j]) * (w ? w[j] : A(1)); };
    A length =
        sqrt(team.reduce(columns, A(0), Add{}, [&](int64_t j) { return centred(j) * centred(j); }));
    A factor = A(1) / (length + A(kNormEps));
    team.each(columns, [&](int64_t j) { z[row * columns + j] = centred(j) * factor; });
    team.each(1, [&](int64_t) { norm[row] = length; });
  }
};

// [aft 6] Row i of both Gram matrices becomes the matrices M that the backward multiplies Z and Y
// with (d delta / dZ = 2 / (n^2 delta) M Z), and its sum of squared differences is kept.
//   linear: M = D = K - K' for both sides.
//   rbf: k = exp(2 <u_i, u_j> - |u_i|^2 - |u_j|^2) and M = 2 (W - diag(row sums of W)), W = D * k.
template <class A>
struct CompareGrams {
  A *student, *teacher;
  const A *student_norm, *teacher_norm;
  A* squares;
  int64_t n;
  bool rbf;
  PUPIL_HD static A squared_length(A norm) {
    A u = norm / (norm + A(kNormEps));
    return u * u;
  }
  PUPIL_HD static A kernel(A product, A norm_i, A norm_j) {
    return exp(A(2) * product - squared_length(norm_i) - squared_length(norm_j));
  }
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t i) const {
    A *ks = student + i * n, *kt = teacher + i * n;
    A sum = team.reduce(n, A(0), Add{}, [&](int64_t j) {
      if (!rbf) {
        A d = ks[j] - kt[j];
        ks[j] = d;
        return d * d;
      }
      A a = i == j ? A(1) : kernel(ks[j], student_norm[i], student_norm[j]);
      A b = i == j ? A(1) : kernel(kt[j], teacher_norm[i], teacher_norm[j]);
      A d = a - b;
      ks[j] = A(2) * d * a;
      kt[j] = A(2) * d * b;
      return d * d;
    });
    team.each(1, [&](int64_t) { squares[i] = sum; });
    if (!rbf) return;
    A diagonal_s = team.reduce(n, A(0), Add{}, [&](int64_t j) { return ks[j]; });
    A diagonal_t = team.reduce(n, A(0), Add{}, [&](int64_t j) { return kt[j]; });
    team.each(1, [&](int64_t) {
      ks[i] -= diagonal_s;
      kt[i] -= diagonal_t;
    });
  }
};

template <class A>
struct RootMeanSquare {  // [aft 7]
  const A* squares;
  A* delta;
  int64_t n;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t) const {
    A sum = team.reduce(n, A(0), Add{}, [&](int64_t i) { return squares[i]; });
    team.each(1, [&](int64_t) { delta[0] = sqrt(sum / (A(n) * A(n)) + A(kDeltaEps)); });
  }
};

// [aft 8] The derivative of x / (|x| + eps) applied to g; that of |x| at 0 is 0. `factor` is +-2 /
// n^2; delta and the cotangent are read here, since a host read would break a captured GPU step.
template <class A>
struct UnitRowBackward {
  const A *z, *norm, *delta, *cotangent;
  A* g;  // in: M Z; out: the gradient of the centred row
  int64_t columns;
  A factor;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    const A* u = z + row * columns;
    A* p = g + row * columns;
    A length = norm[row], k = factor * cotangent[0] / delta[0] / (length + A(kNormEps));
    A along = team.reduce(columns, A(0), Add{}, [&](int64_t j) { return u[j] * p[j]; });
    A radial = length > A(0) ? along * (length + A(kNormEps)) / length : A(0);
    team.each(columns, [&](int64_t j) { p[j] = k * (p[j] - u[j] * radial); });
  }
};

template <class A>
struct PlainColumnMean {
  using Sum = A;
  const A* x;
  A* mean;
  int64_t n, columns;
  PUPIL_HD A value(int64_t row, int64_t col) const { return x[row * columns + col]; }
  PUPIL_HD void store(int64_t col, A sum) const { mean[col] = sum / A(n); }
};

template <class A>
struct SubtractColumns {
  A* x;
  const A* mean;
  int64_t columns;
  PUPIL_HD void operator()(int64_t i) const { x[i] -= mean[i % columns]; }
};

// [aft 9] ds = (1 - w) * sum over rows of the centred weighted features times their gradient:
// centring is self-adjoint, so neither psi nor its means are needed.
template <class A>
struct ScaleGradient {
  using Sum = A;
  const A *y, *g, *norm, *s;  // g: gradient of the centred weighted row
  A* ds;
  int64_t columns;
  PUPIL_HD A value(int64_t row, int64_t col) const {
    return y[row * columns + col] * (norm[row] + A(kNormEps)) * g[row * columns + col];
  }
  // 1 - sigmoid(s) as sigmoid(-s), which does not cancel for large s
  PUPIL_HD void store(int64_t col, A sum) const { ds[col] = logistic(-s[col]) * sum; }
};

template <class A>
struct Unsaturated {  // times 1 - sigmoid(s)
  const A* s;
  A* ds;
  PUPIL_HD void operator()(int64_t i) const { ds[i] *= logistic(-s[i]); }
};

namespace {

struct Side {  // the unit rows of one net and what their backward needs
  Tensor rows, norm;
};

template <class A>
Side unit_rows(const Tensor& x, const Tensor& w) {
  int64_t n = x.dim(0), d = x.dim(1);
  Device device = x.device();
  Side side{empty(x.shape(), x.dtype(), device), empty({n}, x.dtype(), device)};
  Tensor mean = empty({d}, x.dtype(), device);
  cols(device, n, d, ColumnMean<A>{x.data<A>(), mean.data<A>(), n, d});
  rows(device, n,
       UnitRow<A>{x.data<A>(), w ? w.data<A>() : nullptr, mean.data<A>(), side.rows.data<A>(),
                  side.norm.data<A>(), d},
       d);
  return side;
}

// The gradient of the centred rows: of x itself up to the column means.
template <class A>
Tensor centred_gradient(const Side& side, const Tensor& m, const Tensor& delta,
                        const Tensor& cotangent, double factor) {
  int64_t n = side.rows.dim(0), d = side.rows.dim(1);
  Tensor g = matmul(m, side.rows);
  rows(g.device(), n,
       UnitRowBackward<A>{side.rows.data<A>(), side.norm.data<A>(), delta.data<A>(),
                          cotangent.data<A>(), g.data<A>(), d, A(factor)},
       d);
  return g;
}

template <class A>
Tensor subtract_column_means(Tensor g) {
  int64_t n = g.dim(0), d = g.dim(1);
  Tensor mean = empty({d}, g.dtype(), g.device());
  cols(g.device(), n, d, PlainColumnMean<A>{g.data<A>(), mean.data<A>(), n, d});
  map(g.device(), n * d, SubtractColumns<A>{g.data<A>(), mean.data<A>(), d});
  return g;
}

// One node: both sides' unit rows, two products, one comparison. `target` is psi with weights s
// (then it is constant), or the mapped teacher features with s empty (then it has a gradient).
// Keeps the unit rows, their norms, M and delta; nothing else.
template <class A>
Tensor fused_delta(const Tensor& phi, const Tensor& target, const Tensor& s, AftKernel kernel) {
  int64_t n = phi.dim(0);
  Device device = phi.device();
  DType dtype = phi.dtype();
  Tensor s_values = s ? s.detach().contiguous() : Tensor(), w;
  if (s) {
    w = empty(s.shape(), dtype, device);
    map(device, s.numel(), Weights<A>{s_values.data<A>(), w.data<A>()});
  }
  Side student = unit_rows<A>(phi.detach().contiguous(), {});
  Side teacher = unit_rows<A>(target.detach().contiguous(), w);
  Tensor m = matmul(student.rows, student.rows, false, true);  // [aft 5]
  Tensor m_teacher = matmul(teacher.rows, teacher.rows, false, true);
  Tensor squares = empty({n}, dtype, device), delta = empty({}, dtype, device);
  bool rbf = kernel == AftKernel::rbf;
  rows(device, n,
       CompareGrams<A>{m.data<A>(), m_teacher.data<A>(), student.norm.data<A>(),
                       teacher.norm.data<A>(), squares.data<A>(), n, rbf},
       n);
  rows(device, 1, RootMeanSquare<A>{squares.data<A>(), delta.data<A>(), n});
  if (!rbf) m_teacher = m;
  Tensor saved_delta = delta.detach();  // not `delta`: a node must not own itself
  bool weighted = bool(s);
  if (!phi.requires_grad()) {
    student = {};
    m = Tensor();
  }
  if (!(s ? s : target).requires_grad()) {
    teacher = {};
    m_teacher = s_values = Tensor();
  }
  std::vector<Tensor> inputs{phi, target};
  if (s) inputs.push_back(s);
  return record("aft_delta", delta, inputs, [=](Backward& b) {
    double factor = 2 / (double(n) * double(n));
    if (b[0].needed)
      b[0].give(
          subtract_column_means<A>(centred_gradient<A>(student, m, saved_delta, b.gy, factor)));
    else
      b[0].none();
    if (weighted) b[1].none();  // teacher features are constants
    if (!b[weighted ? 2 : 1].needed) {
      b[weighted ? 2 : 1].none();
      return;
    }
    Tensor g = centred_gradient<A>(teacher, m_teacher, saved_delta, b.gy, -factor);
    if (!weighted) {
      b[1].give(subtract_column_means<A>(std::move(g)));
      return;
    }
    int64_t q = g.dim(1);
    Tensor ds = empty({q}, g.dtype(), g.device());
    cols(g.device(), n, q,
         ScaleGradient<A>{teacher.rows.data<A>(), g.data<A>(), teacher.norm.data<A>(),
                          s_values.data<A>(), ds.data<A>(), q});
    b[2].give(std::move(ds));
  });
}

// What the fast node keeps of one net: features and their column means, 1 / (norm + eps), norms,
// and per row sum_j M_ij <u_i, u_j>.
struct FastSide {
  Tensor features, weights, mean, gram, norm, inverse, along;
};

FastSide fast_side(const Tensor& x, const Tensor& w) {
  int64_t n = x.dim(0);
  FastSide side{x, w, empty({x.dim(1)}), empty({n, n}), empty({n}), empty({n}), empty({n})};
  centred_gram(x, w, side.mean, side.gram);  // [aft 3] [aft 5]
  float *g = side.gram.data<float>(), *norm = side.norm.data<float>();
  float* inverse = side.inverse.data<float>();
  for (int64_t i = 0; i < n; i++) {
    norm[i] = std::sqrt(g[i * n + i]);
    inverse[i] = 1 / (norm[i] + float(kNormEps));  // [aft 4]
  }
  for (int64_t i = 0; i < n; i++)
#pragma omp simd
    for (int64_t j = 0; j < n; j++) g[i * n + j] *= inverse[i] * inverse[j];
  return side;
}

bool all_finite(const Tensor& x) {
  const float* v = x.data<float>();
  return std::all_of(v, v + x.numel(), [](float f) { return std::isfinite(f); });
}

// Gram matrices become M, as CompareGrams says; returns delta.
double fast_compare(FastSide& s, FastSide& t, bool rbf) {
  int64_t n = s.gram.dim(0);
  CompareGrams<float> kernel{nullptr, nullptr, s.norm.data<float>(), t.norm.data<float>(), nullptr,
                             n,       rbf};
  std::vector<float> linear_s(static_cast<size_t>(n)), linear_t = linear_s;
  Tensor squares = empty({n});
  double total = 0;
  for (int64_t i = 0; i < n; i++) {
    float *ms = s.gram.data<float>() + i * n, *mt = t.gram.data<float>() + i * n;
    std::copy_n(ms, n, linear_s.data());
    std::copy_n(mt, n, linear_t.data());
    if (rbf) {
      kernel.student = s.gram.data<float>();
      kernel.teacher = t.gram.data<float>();
      kernel.squares = squares.data<float>();
      kernel(SerialTeam{}, i);
      total += double(squares.data<float>()[i]);
    } else {
      float row = 0;
#pragma omp simd reduction(+ : row)
      for (int64_t j = 0; j < n; j++) {
        float d = ms[j] - mt[j];  // [aft 6]
        ms[j] = mt[j] = d;
        row += d * d;
      }
      total += double(row);
    }
    float along_s = 0, along_t = 0;
#pragma omp simd reduction(+ : along_s, along_t)
    for (int64_t j = 0; j < n; j++) {
      along_s += ms[j] * linear_s[size_t(j)];
      along_t += mt[j] * linear_t[size_t(j)];
    }
    s.along.data<float>()[i] = along_s;
    t.along.data<float>()[i] = along_t;
  }
  return std::sqrt(total / (double(n) * double(n)) + kDeltaEps);  // [aft 7]
}

// A with dX = A X for the centred rows X: the derivative of x / (|x| + eps), that of |x| at 0 being
// 0, applied to c M Z, all of it n x n. [aft 8]
Tensor fast_matrix(const FastSide& side, const Tensor& m, double c) {
  int64_t n = m.dim(0);
  Tensor a = empty({n, n});
  const float *inverse = side.inverse.data<float>(), *norm = side.norm.data<float>();
  for (int64_t i = 0; i < n; i++) {
    const float* from = m.data<float>() + i * n;
    float *to = a.data<float>() + i * n, factor = float(c) * inverse[i];
#pragma omp simd
    for (int64_t j = 0; j < n; j++) to[j] = factor * inverse[j] * from[j];
    if (norm[i] > 0) to[i] -= float(c) * side.along.data<float>()[i] * inverse[i] / norm[i];
  }
  return a;
}

// The gradient of the features themselves: (A - its column means) X.
Tensor fast_gradient(const FastSide& side, const Tensor& a) {
  return matmul(sub(a, mean(a, {0}, true)), sub(side.features, side.mean));
}

// The same node in float32 on the CPU: products of the features with themselves are the only work
// that grows with their width, and nothing of the teachers' size is stored.
Tensor fast_delta(const Tensor& phi, const Tensor& target, const Tensor& s, AftKernel kernel) {
  int64_t n = phi.dim(0);
  Tensor s_values = s ? s.detach().contiguous() : Tensor(), w;
  if (s) {
    w = empty(s.shape());
    map({}, s.numel(), Weights<float>{s_values.data<float>(), w.data<float>()});
  }
  FastSide student = fast_side(phi.detach().contiguous(), {});
  FastSide teacher = fast_side(target.detach().contiguous(), w);
  if (!all_finite(teacher.norm)) require_finite("aft_delta", "teacher features", target);
  double value = fast_compare(student, teacher, kernel == AftKernel::rbf);
  bool weighted = bool(s);
  if (!phi.requires_grad()) student = {};
  if (!(s ? s : target).requires_grad()) {
    teacher = {};
    s_values = Tensor();
  }
  std::vector<Tensor> inputs{phi, target};
  if (s) inputs.push_back(s);
  return record("aft_delta", full({}, value, DType::f32), inputs, [=](Backward& b) {
    double c = 2 / (double(n) * double(n) * value) * b.gy.item();
    if (b[0].needed)
      b[0].give(fast_gradient(student, fast_matrix(student, student.gram, c)));
    else
      b[0].none();
    if (weighted) b[1].none();  // teacher features are constants
    Grad& of_teacher = b[weighted ? 2 : 1];
    if (!of_teacher.needed) return of_teacher.none();
    Tensor a = fast_matrix(teacher, teacher.gram, -c);
    if (!weighted) return of_teacher.give(fast_gradient(teacher, a));
    Tensor ds = empty(s_values.shape());
    centred_quadratic(teacher.features, teacher.weights, teacher.mean, a, ds);
    map({}, ds.numel(), Unsaturated<float>{s_values.data<float>(), ds.data<float>()});  // [aft 9]
    of_teacher.give(std::move(ds));
  });
}

Tensor in_dtype(const Tensor& x, DType dtype) {
  return x.dtype() == dtype ? x : to_dtype(x, dtype);
}

// A single row at the mean of its batch has no direction: its gradient is g / eps.
void note_rows_at_mean(const char* whose, const Tensor& x) {
  NoGrad no_grad;
  Tensor shifted = sub(x, slice(x, 0, 0, 1));
  std::vector<double> lengths = sum(square(sub(shifted, mean(shifted, {0}, true))), {1}).values();
  int64_t n = x.dim(0), at_mean = std::count(lengths.begin(), lengths.end(), 0);
  for (int64_t i = 0; i < n && at_mean < n; i++)
    if (lengths[size_t(i)] == 0)
      fprintf(stderr,
              "pupil: anomaly: aft_delta: row %ld of %ld of the %s is the mean of the batch; its "
              "gradient is 1e8 times that of a direction\n",
              long(i), long(n), whose);
}

void check(const Tensor& phi, const Tensor& psi, const Tensor& s, const AftOptions& o) {
  PUPIL_CHECK(phi.rank() == 2 && psi.rank() == 2 && phi.dim(0) == psi.dim(0) && phi.numel() > 0 &&
                  psi.numel() > 0,
              "aft_delta: student features ", phi.shape(), " and teacher features ", psi.shape(),
              " must be (n, p) and (n, q) with the same n > 0");
  int64_t q = psi.dim(1);
  Shape expected = o.map == AftMap::dense ? Shape{q, q} : Shape{q};
  PUPIL_CHECK(s || o.map == AftMap::diag, "aft_delta: only the map diag may go without weights");
  PUPIL_CHECK(!s || s.shape() == expected, "aft_delta: s ", s.shape(), " for teacher features ",
              psi.shape(), ", expected ", expected);
  if (!anomaly_mode()) return;
  note_rows_at_mean("student features", phi.detach());
  note_rows_at_mean("teacher features", psi.detach());
}

std::vector<Tensor> blocks_of(const Tensor& x, const std::vector<int64_t>& widths) {
  std::vector<Tensor> blocks;
  int64_t begin = 0;
  for (int64_t width : widths) {
    PUPIL_CHECK(width > 0 && begin + width <= x.dim(1), "aft: widths beyond the features ",
                x.shape());
    blocks.push_back(slice(x, 1, begin, begin + width));
    begin += width;
  }
  PUPIL_CHECK(begin == x.dim(1), "aft: widths add up to ", begin, ", the features are ", x.shape());
  return blocks;
}

Tensor outer_product(const Tensor& x, const std::vector<int64_t>& widths) {
  int64_t n = x.dim(0);
  Tensor product;
  for (const Tensor& block : blocks_of(x, widths)) {
    int64_t width = block.dim(1);
    if (!product) {
      product = block;
      continue;
    }
    int64_t d = product.dim(1);
    product = view(mul(view(product, {n, d, 1}), view(block, {n, 1, width})), {n, d * width});
  }
  return product;
}

// aft_kernel(outer_product(x, widths)) without the outer product. The Gram matrix of outer products
// is the elementwise product of the blocks' Gram matrices; here for rows counted from their first
// one, r, since centring would cancel most digits: with x_i = r + d_i of the product so far and
// y_i = t + f_i of the next block, x_i y_i - r t = d_i y_i + r f_i. In f64.
Tensor product_kernel(const Tensor& x, const std::vector<int64_t>& widths, AftKernel kernel) {
  int64_t n = x.dim(0);
  Tensor gram, along, length;  // <d_i, d_j> (n, n), <r, d_j> (1, n), <r, r> (1, 1)
  for (const Tensor& y : blocks_of(in_dtype(x, DType::f64), widths)) {
    Tensor t = slice(y, 0, 0, 1).detach(), f = sub(y, t);
    Tensor ff = matmul(f, f, false, true), tf = matmul(t, f, false, true);
    Tensor tt = matmul(t, t, false, true), ft = permute(tf, {1, 0});
    if (!gram) {
      gram = ff;
      along = tf;
      length = tt;
      continue;
    }
    Tensor yf = add(ff, tf), fy = add(ff, ft), yy = add(add(yf, ft), tt);
    gram = add(add(mul(gram, yy), mul(permute(along, {1, 0}), yf)),
               add(mul(along, fy), mul(length, ff)));
    along = add(mul(along, add(tt, tf)), mul(length, tf));
    length = mul(length, tt);
  }
  for (int axis : {0, 1}) gram = sub(gram, mean(gram, {axis}, true));  // [aft 3]
  Tensor identity = zeros({n, n}, DType::f64);
  for (int64_t i = 0; i < n; i++) identity.data<double>()[i * n + i] = 1;
  identity = identity.to(x.device());
  auto diagonal = [&](const Tensor& m) { return sum(mul(m, identity), {1}, true); };
  Tensor norm = add_scalar(sqrt(relu(diagonal(gram))), kNormEps);
  Tensor k = div(div(gram, norm), permute(norm, {1, 0}));  // [aft 4] [aft 5]
  if (kernel == AftKernel::linear) return k;
  Tensor squares = diagonal(k);
  return exp(sub(sub(scale(k, 2), squares), permute(squares, {1, 0})));
}

}  // namespace

Tensor aft_map(const Tensor& psi, const Tensor& s, const AftOptions& o) {
  if (o.map == AftMap::dense) return matmul(psi, s);
  Tensor weighted = mul(psi, sigmoid(s));  // [aft 1] [aft 2]
  return o.map == AftMap::diag ? weighted : outer_product(weighted, o.teacher_widths);
}

Tensor aft_kernel(const Tensor& x, AftKernel kernel) {
  PUPIL_CHECK(x.rank() == 2 && x.numel() > 0, "aft_kernel: (n, d) expected, got ", x.shape());
  int64_t n = x.dim(0), d = x.dim(1);
  Tensor shifted = sub(x, slice(x, 0, 0, 1).detach());      // so that equal rows give exactly 0
  Tensor centred = sub(shifted, mean(shifted, {0}, true));  // [aft 3]
  Tensor norm = sqrt(sum(square(centred), {1}, true));
  Tensor u = div(centred, add_scalar(norm, kNormEps));                // [aft 4]
  if (kernel == AftKernel::linear) return matmul(u, u, false, true);  // [aft 5]
  Tensor difference = sub(view(u, {n, 1, d}), view(u, {1, n, d}));
  return exp(scale(sum(square(difference), {2}), -1));
}

Tensor aft_delta_plain(const Tensor& phi, const Tensor& psi, const Tensor& s, const AftOptions& o) {
  check(phi, psi, s, o);
  require_finite("aft_delta", "teacher features", psi);
  DType dtype = acc_dtype(phi.dtype());
  Tensor student = in_dtype(phi, dtype);
  if (o.map == AftMap::product && o.student_widths.size() > 1)
    student = outer_product(student, o.student_widths);
  Tensor k = aft_kernel(student, o.kernel);
  Tensor target = psi.detach().to(dtype);
  if (s) target = aft_map(target, in_dtype(s, dtype), o);
  Tensor difference = sub(k, aft_kernel(target, o.kernel));      // [aft 6]
  return sqrt(add_scalar(mean(square(difference)), kDeltaEps));  // [aft 7]
}

Tensor aft_delta(const Tensor& phi, const Tensor& psi, const Tensor& s, const AftOptions& o) {
  if (plain_mode()) return aft_delta_plain(phi, psi, s, o);
  check(phi, psi, s, o);
  DType dtype = acc_dtype(phi.dtype());
  Tensor student = in_dtype(phi, dtype), weights = s ? in_dtype(s, dtype) : Tensor();
  Tensor teacher = psi.detach().to(dtype);
  if (o.map == AftMap::product) {
    require_finite("aft_delta", "teacher features", psi);
    bool several = o.student_widths.size() > 1;
    Tensor k =
        product_kernel(student, several ? o.student_widths : std::vector{phi.dim(1)}, o.kernel);
    Tensor target = product_kernel(mul(teacher, sigmoid(weights)), o.teacher_widths, o.kernel);
    return in_dtype(sqrt(add_scalar(mean(square(sub(k, target))), kDeltaEps)), dtype);
  }
  bool diagonal = o.map == AftMap::diag;
  if (!diagonal) teacher = aft_map(teacher, weights, o);
  if (!diagonal) weights = Tensor();
  if (cpu_fast(dtype, phi.device())) return fast_delta(student, teacher, weights, o.kernel);
  require_finite("aft_delta", "teacher features", psi);
  return dtype == DType::f64 ? fused_delta<double>(student, teacher, weights, o.kernel)
                             : fused_delta<float>(student, teacher, weights, o.kernel);
}

AftKernel aft_kernel_named(const std::string& name) {
  if (name == "linear") return AftKernel::linear;
  if (name == "rbf") return AftKernel::rbf;
  fail_input("unknown kernel '", name, "'", did_you_mean(name, {"linear", "rbf"}));
}

AftMap aft_map_named(const std::string& name) {
  if (name == "diag") return AftMap::diag;
  if (name == "dense") return AftMap::dense;
  if (name == "product") return AftMap::product;
  fail_input("unknown map '", name, "'", did_you_mean(name, {"diag", "dense", "product"}));
}

Method aft_method() {
  Method method;
  method.name = "aft";
  method.summary = "the student's batch similarities match the teachers', dimensions weighted";
  method.source = "Qiu et al. 2024, arXiv 2406.07337, section 3";
  method.options = {
      {"beta", 10.0, "strength of the regulariser", "official README"},
      {"kernel", std::string("linear"), "similarity of two rows: linear or rbf", "paper"},
      {"map", std::string("diag"), "weights of the teacher dimensions: diag, dense or product",
       "paper"},
      {"learn_s", true, "train the weights s; false keeps their start values",
       "official README (the code's own default is false)"},
      {"s_lr", 1e-2, "learning rate of s (its weight decay is 0)", "official code"}};
  method.explanation.symbols = {
      {"Phi", "(n, p)", "student features: what enters its last linear layer"},
      {"Psi", "(n, q)", "teacher features side by side, unscaled; a constant"},
      {"s", "(q), dense: (q, q)", "trained weights, 0 at the start (dense: N(0, 1 / q))"},
      {"K, K'", "(n, n)", "similarity of the batch to the student and to the teachers"},
      {"eps", "", "1e-8"}};
  method.explanation.equations = {
      {"1", "w = sigmoid(s)"},
      {"2",
       "T_ik = Psi_ik w_k; dense: T = Psi s; product: outer product of the teachers' blocks, Phi "
       "likewise for a student of several networks"},
      {"3", "Phi_c = Phi - mean over the batch, T_c likewise"},
      {"4", "Z_i = Phi_c,i / (|Phi_c,i| + eps), Y_i = T_c,i / (|T_c,i| + eps)"},
      {"5", "K = Z Z', K' = Y Y'; rbf: exp(-|Z_i - Z_j|^2)"},
      {"6", "D = K - K'"},
      {"7", "delta = sqrt(1/n^2 sum_ij D_ij^2 + 1e-8); the loss is beta delta"},
      {"8",
       "dPhi = G - mean over the batch, G_i = g / (|x| + eps) - x (x.g) / (|x| (|x| + eps)^2), "
       "x = Phi_c,i, g = 2 / (n^2 delta) D Z"},
      {"9", "ds_k = w_k (1 - w_k) sum_i Psi_ik dT_ik"}};
  method.explanation.cases = {"aft.loss", "aft.kernel", "aft.map_psi", "aft.objective",
                              "aft.trajectory"};
  method.make = [](const Options& options, const nn::Scope& scope, const Setup& setup) {
    AftOptions o;
    o.kernel = aft_kernel_named(options.text("kernel"));
    o.map = aft_map_named(options.text("map"));
    o.teacher_widths = setup.teacher_widths;
    o.student_widths = setup.student_widths;
    double beta = at_least_zero(options, "beta"), s_lr = above_zero(options, "s_lr");
    if (o.map == AftMap::product && setup.teacher_widths.size() < 2)
      fail_input(
          "map product multiplies the features of several teachers, this run has one; add a ",
          "[[teacher]], or take map = \"diag\"");
    int64_t q = total_width(setup);
    bool dense = o.map == AftMap::dense, learn = options.flag("learn_s");
    Shape shape = dense ? Shape{q, q} : Shape{q};
    nn::Init init{dense ? nn::Init::normal : nn::Init::zeros,
                  dense ? 1 / std::sqrt(double(std::max<int64_t>(q, 1))) : 0};
    Tensor s = learn ? scope.param("s", shape, init) : scope.buffer("s", shape, init);
    Instance instance;
    if (learn) instance.groups.push_back({{(scope / "s").path}, s_lr, 0});
    instance.loss = [o, beta, s](const Step& step) {
      return scale(aft_delta(step.student.features, teacher_features("aft", step), s, o), beta);
    };
    if (o.map != AftMap::dense)
      instance.statistics = [s] {
        double sum = 0, squares = 0;
        for (double value : s.values()) {
          double weight = logistic(value);
          sum += weight;
          squares += weight * weight;
        }
        double mean = sum / double(s.numel()), variance = squares / double(s.numel()) - mean * mean;
        return std::vector<std::pair<std::string, double>>{
            {"weight_mean", mean}, {"weight_deviation", std::sqrt(std::max(variance, 0.0))}};
      };
    instance.warnings = idle_warnings(setup);
    return instance;
  };
  return method;
}

PUPIL_SAMPLES(aft_delta) {
  auto f = [](AftOptions o, bool plain = false) {
    return [=](const std::vector<Tensor>& v) {
      return plain ? aft_delta_plain(v[0], v[1].detach(), v[2], o)
                   : aft_delta(v[0], v[1].detach(), v[2], o);
    };
  };
  test::SampleOptions teacher{.constants = {1}};
  s.add("4x2 4x3", {{4, 2}, {4, 3}, {3}}, f({}), teacher);
  s.add("9x140 9x5", {{9, 140}, {9, 5}, {5}}, f({}), teacher);
  s.add("one row", {{1, 3}, {1, 4}, {4}}, f({}), teacher);
  s.add("rbf", {{7, 6}, {7, 5}, {5}}, f({AftKernel::rbf, AftMap::diag, {}}), teacher);
  s.add("dense", {{7, 6}, {7, 5}, {5, 5}}, f({AftKernel::linear, AftMap::dense, {}}), teacher);
  s.add("product rbf", {{6, 4}, {6, 5}, {5}}, f({AftKernel::rbf, AftMap::product, {2, 3}}),
        teacher);
  s.add("product of both", {{6, 5}, {6, 5}, {5}},
        f({AftKernel::linear, AftMap::product, {2, 3}, {4, 1}}), teacher);
  s.add("plain", {{4, 2}, {4, 3}, {3}}, f({}, true), teacher);
  s.add("plain product rbf", {{6, 4}, {6, 5}, {5}},
        f({AftKernel::rbf, AftMap::product, {2, 3}}, true), teacher);
  s.add_error("other rows", {{4, 2}, {5, 3}, {3}}, f({}));
  s.add_error("short s", {{4, 2}, {4, 3}, {2}}, f({}));
  s.add_error("rank 3", {{4, 2, 1}, {4, 3}, {3}}, f({}));
}

}  // namespace pupil::methods
