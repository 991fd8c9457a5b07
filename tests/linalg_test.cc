// Linear algebra at real sizes: orthogonality, reconstruction, difficult spectra, large norms,
// errors. (tests/op_suite_test.cc checks gradients and small shapes.)
#include "tensor/linalg.h"

#include "support.h"
#include "tensor/ops.h"
#include "tensor/ops/gemm.h"
#include "tensor/ops/host_matrix.h"
#include "tensor/runtime.h"

namespace pupil {
namespace {

Tensor gaussian(const Shape& shape, uint32_t stream, DType dtype = DType::f64, double factor = 1) {
  std::vector<double> v(static_cast<size_t>(shape.numel()));
  for (size_t i = 0; i < v.size(); i++) v[i] = factor * normal({7, stream, 0}, int64_t(i));
  return from(v, shape, dtype);
}

Tensor identity(int64_t n) {
  Tensor x = zeros({n, n}, DType::f64);
  for (int64_t i = 0; i < n; i++) x.data<double>()[i * (n + 1)] = 1;
  return x;
}

Tensor diagonal(const std::vector<double>& values) {
  int64_t n = int64_t(values.size());
  Tensor x = zeros({n, n}, DType::f64);
  for (int64_t i = 0; i < n; i++) x.data<double>()[i * (n + 1)] = values[size_t(i)];
  return x;
}

Tensor skew(const Tensor& x) { return sub(x, permute(x, {1, 0})); }

Tensor times(const Tensor& a, const Tensor& b) {
  return product(a.to(DType::f64), b.to(DType::f64));
}
Tensor gram(const Tensor& x) { return times(transposed(x.to(DType::f64)), x); }  // x^T x

double largest(const Tensor& x) {
  double worst = 0;
  for (double v : x.values()) worst = std::isnan(v) ? INFINITY : std::max(worst, std::fabs(v));
  return worst;
}
double distance(const Tensor& a, const Tensor& b) {
  return largest(sub(a.to(DType::f64), b.to(DType::f64)));
}

struct Precision {
  DType dtype;
  double eps;
};
const Precision kPrecisions[] = {{DType::f64, 2e-13}, {DType::f32, 4e-6}};

TEST(Linalg, FactorisationsAtRealSizes) {
  for (auto [dtype, eps] : kPrecisions)
    for (Shape shape : {Shape{64, 64}, {300, 128}, {512, 512}}) {
      SCOPED_TRACE(concat(name_of(dtype), " ", shape));
      int64_t n = shape[1];
      Tensor a = gaussian(shape, 1, dtype);
      double size = largest(a) * std::sqrt(double(n));
      Svd d = svd(a);
      EXPECT_LT(distance(gram(d.u), identity(n)), eps);
      EXPECT_LT(distance(gram(permute(d.vt, {1, 0})), identity(n)), eps);
      EXPECT_LT(distance(times(times(d.u, diagonal(d.s.values())), d.vt), a), eps * size);
      std::vector<double> s = d.s.values();
      EXPECT_TRUE(std::is_sorted(s.rbegin(), s.rend()) && s.back() >= 0);

      Polar p = polar(a);
      EXPECT_LT(distance(gram(p.u), identity(n)), eps);
      EXPECT_LT(distance(times(p.u, p.h), a), eps * size);
      EXPECT_LT(distance(p.h, transposed(p.h).contiguous()), eps * size);

      Qr f = qr(a);
      EXPECT_LT(distance(gram(f.q), identity(n)), eps);
      EXPECT_LT(distance(times(f.q, f.r), a), eps * size);
      std::vector<double> r = f.r.values();
      for (int64_t i = 0; i < n; i++) {
        EXPECT_GE(r[size_t(i * (n + 1))], 0);
        for (int64_t j = 0; j < i; j++) EXPECT_EQ(r[size_t(i * n + j)], 0);
      }
    }
}

// Equal, nearly equal, tiny and zero singular values: nothing is divided by them or by differences.
TEST(Linalg, DifficultSpectra) {
  std::vector<double> s(60, 3.0);
  for (size_t i = 20; i < 60; i++) s[i] = i < 40 ? 1 - 1e-14 * double(i) : i < 45 ? 1e-12 : 0;
  Tensor left = haar(gaussian({90, 60}, 1)), right = haar(gaussian({60, 60}, 2));
  Tensor a = product(product(left, diagonal(s)), transposed(right)).requires_grad_();
  Svd d = svd(a);
  for (size_t i = 0; i < s.size(); i++) EXPECT_NEAR(d.s.values()[i], s[i], 1e-14) << i;
  EXPECT_LT(distance(gram(d.u), identity(60)), 1e-13);
  backward(d.s, full({60}, 1, DType::f64));
  EXPECT_LT(distance(gram(a.grad()), identity(60)), 1e-13);  // U V^T

  Polar p = polar(a);
  EXPECT_LT(distance(gram(p.u), identity(60)), 1e-13);
  EXPECT_LT(distance(p.h, product(product(right, diagonal(s)), transposed(right))), 1e-13);
  Tensor zero = zeros({5, 3}, DType::f64);
  EXPECT_LT(distance(gram(polar(zero).u), identity(3)), 1e-14);
  EXPECT_EQ(largest(polar(zero).h), 0);
  EXPECT_EQ(largest(svd(zero).s), 0);
}

double determinant(const Tensor& x) {  // elimination with row exchanges
  int64_t n = x.dim(0);
  std::vector<double> a = x.values();
  double result = 1;
  for (int64_t k = 0; k < n; k++) {
    int64_t best = k;
    for (int64_t i = k; i < n; i++)
      if (std::fabs(a[size_t(i * n + k)]) > std::fabs(a[size_t(best * n + k)])) best = i;
    for (int64_t j = 0; j < n && best != k; j++)
      std::swap(a[size_t(k * n + j)], a[size_t(best * n + j)]);
    result *= (best == k ? 1 : -1) * a[size_t(k * n + k)];
    for (int64_t i = k + 1; i < n; i++) {
      double factor = a[size_t(i * n + k)] / a[size_t(k * n + k)];
      for (int64_t j = k; j < n; j++) a[size_t(i * n + j)] -= factor * a[size_t(k * n + j)];
    }
  }
  return result;
}

TEST(Linalg, HaarIsARotationAndPolarKeepsTheSign) {
  int negative = 0;
  for (uint32_t stream = 0; stream < 40; stream++) {
    Tensor a = gaussian({3 + stream % 4, 3 + stream % 4}, 100 + stream);
    EXPECT_NEAR(determinant(haar(a)), 1, 1e-12);
    bool below = determinant(a) < 0;
    negative += below;
    EXPECT_NEAR(determinant(polar(a).u), below ? -1 : 1, 1e-12);
  }
  EXPECT_GT(negative, 8);
  EXPECT_LT(negative, 32);
}

// exp(t (I + N)), N the shift by one: e^t t^k / k! on diagonal k. And a rotation by 50.
TEST(Linalg, ExponentialOfNorm50) {
  for (auto [dtype, eps] : kPrecisions) {
    int64_t n = 6;
    double t = 25;
    Tensor a = zeros({n, n}, DType::f64), expected = zeros({n, n}, DType::f64);
    for (int64_t i = 0; i < n; i++) {
      double value = std::exp(t);
      for (int64_t j = i; j < n; j++) {
        if (j - i < 2) a.data<double>()[i * n + j] = t;
        expected.data<double>()[i * n + j] = value;
        value *= t / double(j - i + 1);
      }
    }
    EXPECT_LT(distance(expm(a.to(dtype)), expected), 50 * eps * largest(expected));
    std::vector<double> turn{0, -50, 50, 0};
    std::vector<double> rotation{std::cos(50), -std::sin(50), std::sin(50), std::cos(50)};
    EXPECT_LT(distance(expm(from(turn, {2, 2}, dtype)), from(rotation, {2, 2})), 10 * eps);
  }
}

// The gradient against its definition, the exponential of a 2n block; every degree, normal matrices
// (whose norm is estimated from their powers) and others.
TEST(Linalg, GradientOfTheExponentialIsTheBlock) {
  int64_t n = 20;
  for (auto [dtype, eps] : kPrecisions)
    for (double norm : {0.005, 0.1, 0.5, 1.5, 4.0, 20.0, 50.0})
      for (bool normal : {false, true}) {
        Tensor a = gaussian({n, n}, 3), g = gaussian({n, n}, 4);
        if (normal) a = skew(a);
        a = scale(a, norm / svd(a).s.values()[0]).to(dtype).to(DType::f64);
        Tensor at = permute(a, {1, 0});
        Tensor block = cat({cat({at, g}, 1), cat({zeros({n, n}, DType::f64), at}, 1)}, 0);
        Tensor expected = slice(slice(expm(block), 0, 0, n), 1, n, 2 * n);
        Tensor x = a.to(dtype).detach().requires_grad_();
        backward(expm(x), g.to(dtype));
        EXPECT_LT(distance(x.grad(), expected), eps * (1 + norm) * largest(expected))
            << name_of(dtype) << " norm " << norm << (normal ? " skew" : "");
      }
}

struct PlainMode {
  explicit PlainMode(bool on) : before(plain_mode()) { set_plain_mode(on); }
  ~PlainMode() { set_plain_mode(before); }
  bool before;
};

TEST(Linalg, OrthogonalFusedAndPlain) {
  for (OrthogonalMap map : {OrthogonalMap::expm, OrthogonalMap::cayley})
    for (auto [dtype, eps] : kPrecisions)
      for (Shape shape : {Shape{96, 64}, {160, 160}}) {
        Tensor base = haar(gaussian({shape[0], shape[0]}, 1, dtype)), cotangent;
        cotangent = gaussian(shape, 2, dtype);
        std::vector<Tensor> results;
        for (bool plain : {false, true}) {
          PlainMode mode(plain);
          Tensor x = gaussian(shape, 3, dtype, 0.1).requires_grad_();
          Tensor w = orthogonal(x, base, map);
          backward(w, cotangent);
          EXPECT_LT(distance(gram(w), identity(shape[1])), 4 * eps);
          results.push_back(w.detach());
          results.push_back(x.grad());
        }
        EXPECT_LT(distance(results[0], results[2]), 4 * eps);
        EXPECT_LT(distance(results[1], results[3]), 8 * eps * largest(results[3]));
      }
}

TEST(Linalg, OrthogonalAt512InFloat) {
  Tensor base = haar(gaussian({512, 512}, 1, DType::f32));
  Tensor x = gaussian({512, 512}, 2, DType::f32, 0.05);
  for (OrthogonalMap map : {OrthogonalMap::expm, OrthogonalMap::cayley})
    EXPECT_LT(distance(gram(orthogonal(x, base, map)), identity(512)), 2e-5);
}

TEST(Linalg, SolveAtARealSize) {
  for (auto [dtype, eps] : kPrecisions) {
    Tensor a = add(gaussian({300, 300}, 1), scale(identity(300), 40)).to(dtype);
    Tensor b = gaussian({300, 7}, 2, dtype);
    EXPECT_LT(distance(times(a, solve(a, b)), b), 10 * eps);
  }
}

TEST(Linalg, TheSameBitsAgain) {
  auto once = [] {
    Tensor x = gaussian({200, 150}, 5, DType::f64, 0.1).requires_grad_();
    Tensor w = orthogonal(x, haar(gaussian({200, 200}, 6)));
    backward(w, gaussian({200, 150}, 7));
    return std::vector{w.values(), x.grad().values(), svd(x).u.values(), polar(x).u.values(),
                       qr(x).q.values()};
  };
  EXPECT_EQ(once(), once());
}

template <class F>
void expect_error(F&& f, std::initializer_list<std::string> words) {
  try {
    f();
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& error) {
    for (const std::string& word : words)
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos)
          << "no '" << word << "' in: " << error.what();
  }
}

TEST(Linalg, ErrorsNameOpAndShape) {
  struct Op {
    const char* name;
    std::function<void(const Tensor&)> run;
    bool square;
  };
  const Op ops[] = {{"svd", [](const Tensor& x) { svd(x); }, false},
                    {"polar", [](const Tensor& x) { polar(x); }, false},
                    {"qr", [](const Tensor& x) { qr(x); }, false},
                    {"haar", [](const Tensor& x) { haar(x); }, false},
                    {"solve",
                     [](const Tensor& x) {
                       solve(x, zeros({4, 1}, x.dtype()));
                     },
                     true},
                    {"expm", [](const Tensor& x) { expm(x); }, true},
                    {"cayley", [](const Tensor& x) { cayley(x); }, true},
                    {"orthogonal",
                     [](const Tensor& x) {
                       orthogonal(x, zeros({4, 4}, x.dtype()));
                     },
                     false}};
  for (const Op& op : ops)
    for (DType dtype : {DType::f64, DType::f32}) {
      for (double bad : {double(NAN), double(INFINITY)}) {
        Tensor x = gaussian({4, 4}, 1, dtype);
        copy_into(slice(slice(x, 0, 1, 2), 1, 2, 3), full({1, 1}, bad, dtype));
        expect_error([&] { op.run(x); },
                     {op.name, "(4,4)", "element 6", std::isnan(bad) ? "nan" : "inf"});
      }
      for (Shape shape : {Shape{4}, {2, 4, 4}})
        expect_error([&] { op.run(zeros(shape, dtype)); }, {op.name, concat(shape)});
      if (op.square)
        expect_error([&] { op.run(zeros({4, 3}, dtype)); }, {op.name, "square", "(4,3)"});
      expect_error([&] { op.run(gaussian({4, 4}, 1, DType::bf16)); }, {op.name, "bf16"});
    }
  expect_error([] { solve(zeros({3, 3}), zeros({3, 1})); }, {"solve", "(3,3)", "singular"});
  expect_error([] { solve(zeros({3, 3}), zeros({3, 1}, DType::f64)); }, {"solve", "f32", "f64"});
  Tensor a = gaussian({3, 3}, 1).requires_grad_();
  expect_error(
      [&] {
        Tensor h = polar(a).h;
        backward(h, h.detach());
      },
      {"polar", "gradient"});
}

}  // namespace
}  // namespace pupil
