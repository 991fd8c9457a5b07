// Methods against the values, invariances and bad inputs of their papers and specifications.
#include <fmt/format.h>

#include <map>
#include <random>

#include "autograd/autograd.h"
#include "methods/aft.h"
#include "methods/baselines.h"
#include "methods/kd.h"
#include "methods/objective.h"
#include "support.h"
#include "tensor/memory.h"
#include "tensor/runtime.h"

namespace pupil::methods {
namespace {

Tensor matrix(int64_t n, int64_t d, uint64_t seed, double scale = 1) {
  std::vector<double> values(size_t(n * d));
  for (size_t i = 0; i < values.size(); i++) values[i] = scale * normal({seed, 0, 0}, int64_t(i));
  return from(std::span<const double>(values), {n, d});
}

Tensor vector64(const std::vector<double>& values) {
  return from(std::span<const double>(values), {int64_t(values.size())});
}

void expect_values(const Tensor& got, const std::vector<double>& want, double atol) {
  std::vector<double> have = got.values();
  ASSERT_EQ(have.size(), want.size());
  for (size_t i = 0; i < want.size(); i++) EXPECT_NEAR(have[i], want[i], atol) << "element " << i;
}

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}
#define EXPECT_ERROR(expression, text)                                   \
  EXPECT_NE(error_of([&] { expression; }).find(text), std::string::npos) \
      << error_of([&] { expression; })

// Every AFT test runs on the fused node and on the definition.
using Delta = Tensor (*)(const Tensor&, const Tensor&, const Tensor&, const AftOptions&);
class Aft : public testing::TestWithParam<Delta> {
 protected:
  Tensor delta(const Tensor& phi, const Tensor& psi, const Tensor& s, AftOptions o = {}) {
    return GetParam()(phi, psi, s, o);
  }
  double value(const Tensor& phi, const Tensor& psi, const Tensor& s, AftOptions o = {}) {
    return delta(phi, psi, s, o).item();
  }
  Tensor phi = from(std::vector<double>{1, 0, 0, 2, -1, 1, 2, -1}, {4, 2});
  Tensor psi = from(std::vector<double>{1, 2, 0, 0, 1, 1, -1, 0, 2, 3, 1, -1}, {4, 3});
  Tensor s0 = vector64({0, 0, 0}), s2 = vector64({0.5, -1, 2});
};
INSTANTIATE_TEST_SUITE_P(Both, Aft, testing::Values(aft_delta, aft_delta_plain),
                         [](auto& info) { return info.index ? "plain" : "fused"; });

// aft.md, section 16
TEST_P(Aft, GoldenA1) {
  Tensor p = phi.clone().requires_grad_(), s = s0.clone().requires_grad_();
  Tensor d = delta(p, psi, s);
  EXPECT_NEAR(d.item(), 0.29150959069706, 1e-13);
  backward(d);
  expect_values(p.grad(),
                {-0.051083933218, -0.039035718197, 0.035342825646, 0.032768855108, -0.003375823690,
                 -0.024898296119, 0.019116931262, 0.031165159209},
                1e-12);
  expect_values(s.grad(), {-0.002157024842, 0.062483829897, -0.060326806061}, 1e-12);
  double sum = 0;
  for (double g : s.grad().values()) sum += g;
  EXPECT_NEAR(sum, -1.0e-9, 1e-10);
}

TEST(AftKernelValues, GoldenA1) {
  Tensor phi = from(std::vector<double>{1, 0, 0, 2, -1, 1, 2, -1}, {4, 2});
  Tensor psi = from(std::vector<double>{1, 2, 0, 0, 1, 1, -1, 0, 2, 3, 1, -1}, {4, 3});
  auto upper = [](const Tensor& k) {
    std::vector<double> v = k.values();
    return vector64({v[1], v[2], v[3], v[6], v[7], v[11]});
  };
  expect_values(upper(aft_kernel(phi, AftKernel::linear)),
                {-0.894427172694, -0.894427172694, 0.999999981144, 0.599999992411, -0.894427181127,
                 -0.894427181127},
                1e-12);
  Tensor target = aft_map(psi, vector64({0, 0, 0}), {});
  expect_values(upper(aft_kernel(target, AftKernel::linear)),
                {-0.423659256072, -0.759972187922, 0.423659262339, 0.910713058234, -0.999999970416,
                 -0.910713071705},
                1e-12);
}

TEST_P(Aft, GoldenA2) {
  Tensor p = phi.clone().requires_grad_(), s = s2.clone().requires_grad_();
  Tensor d = delta(p, psi, s);
  EXPECT_NEAR(d.item(), 0.16995217481794, 1e-13);
  backward(d);
  expect_values(p.grad(),
                {-0.048191787517, -0.001647956195, 0.118945283902, 0.078397149712, -0.061234360107,
                 -0.113773895734, -0.009519136278, 0.037024702218},
                1e-12);
  expect_values(s.grad(), {0.006409378295, 0.031099886563, -0.007094665826}, 1e-12);
  std::vector<double> ds = s.grad().values(), at = s2.values();
  double sum = 0;
  for (size_t k = 0; k < 3; k++) sum += ds[k] * (1 + std::exp(at[k]));  // ds / (1 - w)
  EXPECT_NEAR(sum, 2.5e-9, 1e-10);
}

TEST_P(Aft, GoldenA3ToA7) {
  double c = std::cos(M_PI / 6), t = std::sin(M_PI / 6);
  Tensor rotation = from(std::vector<double>{c, t, -t, c}, {2, 2});
  Tensor moved = add(scale(matmul(phi, rotation), 3), vector64({7, -2}));
  EXPECT_NEAR(value(moved, psi, s2), 0.169952176, 1e-8);
  Tensor shear = from(std::vector<double>{1, 0, 1, 1}, {2, 2});
  EXPECT_NEAR(value(matmul(phi, shear), psi, s2), 0.47125262093546, 1e-13);
  EXPECT_NEAR(value(phi, psi, s0, {AftKernel::rbf, AftMap::diag, {}}), 0.278239232687, 1e-11);
  EXPECT_NEAR(value(phi, psi, s2, {AftKernel::rbf, AftMap::diag, {}}), 0.222849385503, 1.1e-8);
  Tensor identity = from(std::vector<double>{1, 0, 0, 0, 1, 0, 0, 0, 1}, {3, 3});
  EXPECT_NEAR(value(phi, psi, identity, {AftKernel::linear, AftMap::dense, {}}), 0.29150958969136,
              1e-13);
  EXPECT_NEAR(value(psi, psi, vector64({0.7, 0.7, 0.7})), 1e-4, 1e-8);
}

TEST_P(Aft, GoldenA9AndA10) {
  Tensor square = from(std::vector<double>{1, 1, 1, -1, -1, 1, -1, -1}, {4, 2});
  Tensor column = from(std::vector<double>{1, 1, -1, -1}, {4, 1});
  EXPECT_NEAR(value(square, column, vector64({0})), 0.707106759973, 1e-11);
  auto logit = [](double w) { return std::log(w / (1 - w)); };
  EXPECT_NEAR(value(square, square, vector64({logit(0.25), 0})), 0.424264065, 1e-9);
  EXPECT_NEAR(value(square, square, vector64({logit(0.1), 0})), 0.652713934, 1e-9);
}

TEST_P(Aft, GoldenA11FirstAdamStep) {
  nn::Store store(0, DType::f64);
  Tensor s = nn::Scope(store).param("s", {3}, {});
  nn::OptimizerOptions options;
  options.algorithm = nn::Algorithm::adam;
  nn::Optimizer optimizer(store, {{{"s"}, 1e-2, 0}}, options);
  backward(scale(delta(phi, psi, s), 10));
  optimizer.step();
  expect_values(s, {0.009999995364, -0.009999999840, 0.009999999834}, 1e-12);
}

// A20: A1 to A7, A9 and A10 in float32 (A8: DegenerateBatchesAreFinite).
TEST_P(Aft, GoldenInFloat32) {
  auto narrow = [&](const Tensor& a, const Tensor& b, const Tensor& s, AftOptions o = {}) {
    auto f32 = [](const Tensor& x) { return x.to(DType::f32); };
    return value(f32(a), f32(b), f32(s), o);
  };
  double c = std::cos(M_PI / 6), t = std::sin(M_PI / 6);
  Tensor rotation = from(std::vector<double>{c, t, -t, c}, {2, 2});
  Tensor moved = add(scale(matmul(phi, rotation), 3), vector64({7, -2}));
  Tensor sheared = matmul(phi, from(std::vector<double>{1, 0, 1, 1}, {2, 2}));
  Tensor identity = from(std::vector<double>{1, 0, 0, 0, 1, 0, 0, 0, 1}, {3, 3});
  Tensor square = from(std::vector<double>{1, 1, 1, -1, -1, 1, -1, -1}, {4, 2});
  AftOptions rbf{AftKernel::rbf, AftMap::diag, {}}, dense{AftKernel::linear, AftMap::dense, {}};
  EXPECT_NEAR(narrow(phi, psi, s0), 0.29150959069706, 1e-5);
  EXPECT_NEAR(narrow(phi, psi, s2), 0.16995217481794, 1e-5);
  EXPECT_NEAR(narrow(moved, psi, s2), 0.169952176, 1e-5);
  EXPECT_NEAR(narrow(sheared, psi, s2), 0.47125262093546, 1e-5);
  EXPECT_NEAR(narrow(phi, psi, s0, rbf), 0.278239232687, 1e-5);
  EXPECT_NEAR(narrow(phi, psi, s2, rbf), 0.222849385503, 1e-5);
  EXPECT_NEAR(narrow(phi, psi, identity, dense), 0.29150958969136, 1e-5);
  EXPECT_NEAR(narrow(psi, psi, vector64({0.7, 0.7, 0.7})), 1.1e-4, 1e-5);
  EXPECT_NEAR(narrow(square, slice(square, 1, 0, 1), vector64({0})), 0.707106759973, 1e-5);
  EXPECT_NEAR(narrow(square, square, vector64({-std::log(3.0), 0})), 0.424264065, 1e-5);
  EXPECT_NEAR(narrow(square, square, vector64({-std::log(9.0), 0})), 0.652713934, 1e-5);
}

// Adam does not see the scale of a gradient: beta moves s only through the student.
TEST_P(Aft, PathOfTheWeightsDoesNotDependOnBeta) {
  std::vector<std::vector<double>> ends;
  for (double beta : {1.0, 1000.0}) {
    nn::Store store(0, DType::f64);
    Tensor s = nn::Scope(store).param("s", {3}, {});
    nn::OptimizerOptions options;
    options.algorithm = nn::Algorithm::adam;
    nn::Optimizer optimizer(store, {{{"s"}, 1e-2, 0}}, options);
    for (int step = 0; step < 20; step++) {
      optimizer.zero_grad();
      backward(scale(delta(phi, psi, s), beta));
      optimizer.step();
    }
    ends.push_back(s.values());
  }
  for (size_t k = 0; k < 3; k++) {
    EXPECT_GT(std::fabs(ends[0][k]), 0.05);
    EXPECT_NEAR(ends[0][k], ends[1][k], 1e-5);
  }
}

// A8 and section 15: one or two rows, equal rows, a row at the batch mean; in both precisions.
TEST_P(Aft, DegenerateBatchesAreFinite) {
  for (DType dtype : {DType::f64, DType::f32})
    for (int64_t n : {1, 2, 3, 7, 100}) {
      Tensor random = matrix(n, 5, 11).to(dtype), constant = zeros({n, 5}, dtype);
      copy_into(constant, expand(full({1, 1}, 0.1, dtype), {n, 5}));
      for (bool equal_rows : {false, true}) {
        if (!equal_rows && n > 2) continue;
        Tensor p = (equal_rows ? constant : random).clone().requires_grad_();
        Tensor s = zeros({5}, dtype).requires_grad_();
        Tensor teacher = equal_rows ? constant : matrix(n, 5, 12).to(dtype);
        Tensor d = delta(p, teacher, s);
        EXPECT_NEAR(d.item(), 1e-4, 1e-8) << n << " rows, equal " << equal_rows;
        backward(d);
        double noise = n == 2 && !equal_rows ? 1e-2 : 0;  // two rows are opposite up to rounding
        expect_values(p.grad(), std::vector<double>(size_t(5 * n)), noise);
        expect_values(s.grad(), std::vector<double>(5), noise);
      }
      // one side constant, the other not
      if (n < 3) continue;
      Tensor p = constant.clone().requires_grad_(), s = zeros({5}, dtype).requires_grad_();
      Tensor d = delta(p, random, s);
      EXPECT_TRUE(std::isfinite(d.item()));
      backward(d);
      expect_values(p.grad(), std::vector<double>(size_t(5 * n)), 0);
    }
}

struct Sizes {
  int64_t n, p, q;
};
class AftSizes : public testing::TestWithParam<Sizes> {};
INSTANTIATE_TEST_SUITE_P(Random, AftSizes,
                         testing::Values(Sizes{3, 1, 1}, Sizes{5, 7, 3}, Sizes{17, 64, 200},
                                         Sizes{130, 30, 3000}, Sizes{64, 3000, 65}));

Tensor orthogonal(int64_t d, uint64_t seed) {  // a product of Householder reflections
  Tensor q = zeros({d, d}, DType::f64);
  double* m = q.data<double>();
  for (int64_t i = 0; i < d; i++) m[i * d + i] = 1;
  for (uint64_t k = 0; k < 3; k++) {
    std::vector<double> v = matrix(1, d, seed + k).values();
    double length = 0;
    for (double x : v) length += x * x;
    for (int64_t i = 0; i < d; i++) {
      double dot = 0;
      for (int64_t j = 0; j < d; j++) dot += m[i * d + j] * v[size_t(j)];
      for (int64_t j = 0; j < d; j++) m[i * d + j] -= 2 * dot / length * v[size_t(j)];
    }
  }
  return q;
}

// aft.md, section 5, and the agreement of the two forms in f64 and f32 (A20).
TEST_P(AftSizes, InvariancesAndAgreement) {
  auto [n, p, q] = GetParam();
  Tensor phi = matrix(n, p, 1), psi = matrix(n, q, 2, 3), s = view(matrix(1, q, 3), {q});
  Tensor phi_leaf = phi.clone().requires_grad_(), s_leaf = s.clone().requires_grad_();
  Tensor delta = aft_delta(phi_leaf, psi, s_leaf);
  backward(delta);
  double base = delta.item();

  Tensor phi_plain = phi.clone().requires_grad_(), s_plain = s.clone().requires_grad_();
  Tensor plain = aft_delta_plain(phi_plain, psi, s_plain);
  backward(plain);
  EXPECT_NEAR(base, plain.item(), 1e-12);
  expect_values(phi_leaf.grad(), phi_plain.grad().values(), 1e-10);
  expect_values(s_leaf.grad(), s_plain.grad().values(), 1e-10);
  EXPECT_NEAR(aft_delta(phi.to(DType::f32), psi.to(DType::f32), s.to(DType::f32)).item(), base,
              1e-5);

  if (p <= 200) {
    EXPECT_NEAR(aft_delta(matmul(phi, orthogonal(p, 4)), psi, s).item(), base, 1e-8);
  }
  EXPECT_NEAR(aft_delta(scale(phi, 3), psi, s).item(), base, 1e-7);
  EXPECT_NEAR(aft_delta(add(phi, matrix(1, p, 5)), psi, s).item(), base, 1e-8);

  // w -> a w: s -> log(a w / (1 - a w))
  std::vector<double> scaled = s.values();
  for (double& x : scaled) {
    double w = 0.5 / (1 + std::exp(-x));
    x = std::log(w / (1 - w));
  }
  EXPECT_NEAR(aft_delta(phi, psi, vector64(scaled)).item(), base, 1e-7);
  double sum = 0;
  std::vector<double> ds = s_leaf.grad().values(), at = s.values();
  for (size_t k = 0; k < ds.size(); k++) sum += ds[k] * (1 + std::exp(at[k]));
  EXPECT_NEAR(sum, 0, 1e-7);

  std::vector<int64_t> order(static_cast<size_t>(n));
  for (size_t i = 0; i < order.size(); i++) order[i] = int64_t(i);
  std::mt19937_64 random(6);
  std::shuffle(order.begin(), order.end(), random);
  Tensor index = from(std::span<const int64_t>(order), {n});
  EXPECT_NEAR(aft_delta(index_select(phi, index), index_select(psi, index), s).item(), base, 1e-10);

  std::vector<int64_t> places(static_cast<size_t>(q));
  for (size_t i = 0; i < places.size(); i++) places[i] = int64_t(i);
  std::shuffle(places.begin(), places.end(), random);
  Tensor dims = from(std::span<const int64_t>(places), {q});
  Tensor permuted = permute(index_select(permute(psi, {1, 0}).contiguous(), dims), {1, 0});
  EXPECT_NEAR(aft_delta(phi, permuted.contiguous(), index_select(s, dims)).item(), base, 1e-10);

  // Gram form: with H = I - 1/n and G = H phi phi' H, K_ij = G_ij / sqrt(G_ii G_jj).
  Tensor h = scale(full({n, n}, 1, DType::f64), -1 / double(n));
  for (int64_t i = 0; i < n; i++) h.data<double>()[i * n + i] += 1;
  Tensor g = matmul(matmul(h, matmul(phi, phi, false, true)), h);
  std::vector<double> gram = g.values(), k = aft_kernel(phi, AftKernel::linear).values();
  auto at_gram = [&, n = n](int64_t i, int64_t j) { return gram[size_t(i * n + j)]; };
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < n; j++)
      ASSERT_NEAR(k[size_t(i * n + j)], at_gram(i, j) / std::sqrt(at_gram(i, i) * at_gram(j, j)),
                  1e-6);

  // A teacher dimension that is constant over the batch adds nothing and has no gradient.
  Tensor wider = cat({psi, full({n, 1}, 5, DType::f64)}, 1);
  Tensor wider_s = cat({s, vector64({0.3})}, 0).detach().requires_grad_();
  Tensor same = aft_delta(phi, wider, wider_s);
  EXPECT_NEAR(same.item(), base, 1e-12);
  backward(same);
  EXPECT_EQ(wider_s.grad().values().back(), 0);
}

// A19: closed forms against central differences, every kernel and map.
TEST_P(Aft, GradientsMatchDifferences) {
  GradcheckOptions tight;
  tight.atol = 1e-8;
  tight.rtol = 1e-6;
  for (AftKernel kernel : {AftKernel::linear, AftKernel::rbf})
    for (AftMap map : {AftMap::diag, AftMap::dense, AftMap::product}) {
      AftOptions o{kernel, map, {2, 4}};
      Tensor p = matrix(7, 5, 21).requires_grad_(), teacher = matrix(7, 6, 22);
      Tensor s = map == AftMap::dense ? matrix(6, 6, 23) : view(matrix(1, 6, 23), {6});
      s = s.detach().requires_grad_();
      EXPECT_EQ(gradcheck([&](auto& v) { return delta(v[0], teacher, v[1], o); }, {p, s}, tight),
                "")
          << int(kernel) << " " << int(map);
    }
}

// Section 10: the kernel of outer products comes from Gram matrices, nothing of their width exists.
TEST(AftProduct, GramFormIsTheOuterProduct) {
  for (AftKernel kernel : {AftKernel::linear, AftKernel::rbf})
    for (int64_t n : {1, 2, 3, 30})
      for (std::vector<int64_t> student : {std::vector<int64_t>{}, {7, 5}, {4, 5, 3}}) {
        AftOptions o{kernel, AftMap::product, {6, 9}, student};
        std::vector<double> values[2];
        for (auto f : {aft_delta, aft_delta_plain}) {
          Tensor phi = matrix(n, 12, 1).requires_grad_();
          Tensor s = view(matrix(1, 15, 3), {15}).detach().requires_grad_();
          Tensor d = f(phi, matrix(n, 15, 2), s, o);
          backward(d);
          std::vector<double>& all = values[f == aft_delta];
          all = phi.grad().values();
          std::vector<double> ds = s.grad().values();
          all.insert(all.end(), ds.begin(), ds.end());
          all.push_back(d.item());
        }
        for (size_t i = 0; i < values[0].size(); i++)
          ASSERT_NEAR(values[0][i], values[1][i], n == 2 ? 1e-4 : 1e-9) << n << " " << i;
      }
  // Equal rows on either side: finite, no gradient there.
  for (bool equal_student : {false, true}) {
    Tensor same = zeros({7, 6}), other = matrix(7, 6, 4).to(DType::f32);
    copy_into(same, expand(full({1, 1}, 0.1), {7, 6}));
    Tensor phi = (equal_student ? same : other).clone().requires_grad_();
    Tensor s = zeros({6}).requires_grad_();
    Tensor d = aft_delta(phi, equal_student ? other : same, s,
                         {AftKernel::linear, AftMap::product, {2, 4}, {3, 3}});
    EXPECT_TRUE(std::isfinite(d.item()));
    backward(d);
    expect_values((equal_student ? phi : s).grad(), std::vector<double>(equal_student ? 42 : 6), 0);
  }
  // 27 billion columns
  Tensor wide = matrix(4, 9000, 5).to(DType::f32);
  EXPECT_TRUE(std::isfinite(aft_delta(matrix(4, 3, 6).to(DType::f32), wide, zeros({9000}),
                                      {AftKernel::linear, AftMap::product, {3000, 3000, 3000}})
                                .item()));
}

// Section 16 (ii): without learning, any constant s is the same loss: only ratios of weights count.
TEST_P(Aft, ConstantWeightsDoNotMatter) {
  for (double c : {-3.0, 0.0, 2.0})
    EXPECT_NEAR(value(phi, psi, vector64({c, c, c})), value(phi, psi, {}), 1e-7) << c;
}

TEST_P(Aft, TeacherReceivesNothing) {
  Tensor teacher = psi.clone().requires_grad_();
  backward(delta(phi.clone().requires_grad_(), teacher, s0.clone().requires_grad_()));
  EXPECT_FALSE(teacher.grad());
  Tensor dense = from(std::vector<double>{1, 0, 0, 0, 1, 0, 0, 0, 1}, {3, 3}).requires_grad_();
  backward(delta(phi, teacher, dense, {AftKernel::linear, AftMap::dense, {}}));
  EXPECT_FALSE(teacher.grad());
  EXPECT_TRUE(dense.grad());
}

TEST_P(Aft, Bf16StudentIsComputedInFloat32) {
  Tensor p = matrix(16, 40, 31).to(DType::bf16), teacher = matrix(16, 50, 32).to(DType::f32);
  Tensor s = zeros({50}), leaf = p.clone().requires_grad_();
  Tensor d = delta(leaf, teacher, s);
  EXPECT_EQ(d.dtype(), DType::f32);
  EXPECT_NEAR(d.item(), delta(p.to(DType::f32), teacher, s).item(), 1e-7);
  backward(d);
  EXPECT_EQ(leaf.grad().dtype(), DType::bf16);
}

// Section 15: finite, but worth a line where a person looks for such things.
TEST_P(Aft, ARowAtTheMeanIsToldInAnomalyMode) {
  Tensor at_mean = from(std::vector<double>{1, 0, -1, 0, 0, 1, 0, -1, 0, 0}, {5, 2});
  Tensor other = matrix(5, 2, 5);
  auto told = [&](const Tensor& p, const Tensor& t) {
    testing::internal::CaptureStderr();
    delta(p, t, zeros({2}, DType::f64));
    return testing::internal::GetCapturedStderr();
  };
  EXPECT_EQ(told(at_mean, other), "");
  Anomaly anomaly;
  EXPECT_EQ(told(other, other), "");
  EXPECT_NE(told(at_mean, other).find("row 4 of 5 of the student features"), std::string::npos);
  EXPECT_NE(told(other, at_mean).find("row 4 of 5 of the teacher features"), std::string::npos);
  EXPECT_EQ(told(zeros({5, 2}, DType::f64), other), "");  // all rows: the gradient is 0
}

TEST_P(Aft, BadInput) {
  EXPECT_ERROR(delta(phi, matrix(5, 3, 1), s0), "(4,2)");
  EXPECT_ERROR(delta(view(phi, {4, 2, 1}), psi, s0), "aft_delta");
  EXPECT_ERROR(delta(phi, psi, vector64({0, 0})), "s (2)");
  EXPECT_ERROR(delta(phi, psi, s0, {AftKernel::linear, AftMap::product, {2, 2}}), "widths");
  for (double bad : {double(NAN), double(INFINITY)}) {
    Tensor broken = psi.clone();
    broken.data<double>()[7] = bad;
    EXPECT_ERROR(delta(phi, broken, s0), "row 2");
  }
  Tensor nan_student = phi.clone();  // a student's NaN reaches the loss
  nan_student.data<double>()[3] = NAN;
  EXPECT_TRUE(std::isnan(value(nan_student, psi, s0)));
}

// more/logit-standardization.md, golden values
class Kd : public testing::Test {
 protected:
  Tensor student = from(std::vector<double>{2, 0.5, -1, 0, 0.1, 0.2, 0.3, -0.4}, {2, 4});
  Tensor teacher = from(std::vector<double>{4, 1, -2, 0.5, -1, 3, 0.5, 0}, {2, 4});
};

TEST_F(Kd, GoldenValues) {
  for (auto f : {kd_loss, kd_loss_plain}) {
    KdOptions o;
    EXPECT_NEAR(f(student, teacher, {}, o).item(), 0.8129479740837655, 1e-14);
    o.temperature = 2;
    EXPECT_NEAR(f(student, teacher, {}, o).item(), 0.7406074712548713, 1e-14);
    o.logit_standardization = true;
    Tensor leaf = student.clone().requires_grad_();
    Tensor loss = f(leaf, teacher, {}, o);
    EXPECT_NEAR(loss.item(), 0.230816869474549, 1e-14);
    backward(loss);
    expect_values(
        leaf.grad(),
        {0.00183679224056025, 0.0040813952915711, 0.00571428146826231, -0.0116324690003937,
         0.326689324953461, -0.595092929570317, 0.276730206199965, -0.00832660158310938},
        1e-13);
    Tensor moved = student.clone();
    for (int i = 0; i < 4; i++) moved.data<double>()[i] = 3 * moved.data<double>()[i] + 7;
    for (int i = 4; i < 8; i++) moved.data<double>()[i] = 0.5 * moved.data<double>()[i] - 2;
    EXPECT_NEAR(f(moved, teacher, {}, o).item() - loss.item(), -4.86e-8, 1e-10);
  }
}

TEST_F(Kd, ReductionsAreMultiplesOfEachOther) {
  auto value = [&](KdReduction r, const Tensor& labels = {}, std::optional<double> alpha = {}) {
    KdOptions o;
    o.reduction = r;
    o.alpha = alpha;
    return kd_loss(student, teacher, labels, o).item();
  };
  double batchmean = value(KdReduction::batchmean);
  EXPECT_NEAR(value(KdReduction::mean), batchmean / 4, 1e-14);
  EXPECT_NEAR(value(KdReduction::sum), batchmean * 2, 1e-14);
  EXPECT_NEAR(value(KdReduction::torchdistill), batchmean / 16, 1e-14);
  Tensor labels = from(std::vector<int64_t>{1, 3}, {2});
  double ce = cross_entropy(student, labels).item();
  EXPECT_NEAR(value(KdReduction::torchdistill, labels, 0.3), 0.3 * ce + 0.7 * batchmean, 1e-14);
  EXPECT_NEAR(value(KdReduction::torchdistill, labels, 0), batchmean / 16, 1e-14);
  // the cross-entropy form has the gradient of the divergence and another value
  KdOptions o;
  o.reduction = KdReduction::cls_kd;
  Tensor a = student.clone().requires_grad_(), b = student.clone().requires_grad_();
  backward(kd_loss(a, teacher, {}, o));
  backward(kd_loss(b, teacher, {}));
  expect_values(a.grad(), b.grad().values(), 1e-14);
  EXPECT_GT(value(KdReduction::cls_kd), batchmean);
}

TEST_F(Kd, FusedEqualsPlainAndTeacherReceivesNothing) {
  Tensor labels = from(std::vector<int64_t>{4, 0, 2, 9, 1}, {5});
  for (DType dtype : {DType::f64, DType::f32})
    for (bool standardize : {false, true})
      for (int r = 0; r < 6; r++) {
        KdOptions o;
        o.reduction = KdReduction(r);
        o.alpha = 0.4;
        o.logit_standardization = standardize;
        Tensor t = matrix(5, 10, 2, 4).to(dtype).requires_grad_();
        Tensor a = matrix(5, 10, 1, 3).to(dtype).requires_grad_(), b = a.clone().requires_grad_();
        Tensor fused = kd_loss(a, t, labels, o), plain = kd_loss_plain(b, t, labels, o);
        double tolerance = dtype == DType::f64 ? 1e-13 : 2e-5;
        EXPECT_NEAR(fused.item(), plain.item(), tolerance * std::max(1.0, plain.item())) << r;
        backward(scale(fused, 2));
        backward(scale(plain, 2));
        expect_values(a.grad(), b.grad().values(), tolerance);
        EXPECT_FALSE(t.grad());
      }
}

TEST_F(Kd, ZeroInitialisedHeadIsFinite) {  // deviation 0: its gradient counts as 0
  KdOptions o;
  o.logit_standardization = true;
  for (auto f : {kd_loss, kd_loss_plain}) {
    Tensor zero = zeros({2, 4}, DType::f64).requires_grad_();
    Tensor loss = f(zero, teacher, {}, o);
    EXPECT_TRUE(std::isfinite(loss.item()));
    backward(loss);
    for (double g : zero.grad().values()) EXPECT_TRUE(std::isfinite(g));
  }
}

TEST_F(Kd, HugeLogitsStayFinite) {
  Tensor s = scale(student, 1e4).to(DType::f32).requires_grad_();
  Tensor loss = kd_loss(s, scale(teacher, -1e4).to(DType::f32), {});
  EXPECT_TRUE(std::isfinite(loss.item()));
  backward(loss);
  for (double g : s.grad().values()) EXPECT_TRUE(std::isfinite(g));
}

TEST_F(Kd, BadInput) {
  EXPECT_ERROR(kd_loss(student, matrix(2, 5, 1), {}), "(2,5)");
  for (double t : {0.0, -1.0, double(NAN), double(INFINITY)}) {
    KdOptions o;
    o.temperature = t;
    EXPECT_ERROR(kd_loss(student, teacher, {}, o), "temperature");
  }
  Tensor broken = teacher.clone();
  broken.data<double>()[5] = NAN;
  EXPECT_ERROR(kd_loss(student, broken, {}), "kd_loss: teacher logits (2,4) hold 1 NaN");
  KdOptions o;
  o.logit_standardization = true;
  EXPECT_ERROR(kd_loss(matrix(3, 1, 1), matrix(3, 1, 2), {}, o), "2 classes");
  EXPECT_ERROR(kd_reduction("batchmaen"), "batchmean");
}

// Registry, options and the weighted sum.
struct Scene {  // one batch of a student with two teachers
  nn::Store store{0, DType::f64};
  models::Output student{matrix(6, 4, 1).requires_grad_(), matrix(6, 5, 2).requires_grad_()};
  Batch batch;
  std::vector<Teacher> teachers{2};
  nn::Taps taps;
  methods::Setup setup;
  Scene() {
    batch.labels = from(std::vector<int64_t>{0, 1, 2, 3, 0, 1}, {6});
    for (size_t i = 0; i < 2; i++) {
      teachers[i].name = "teacher" + std::to_string(i);
      teachers[i].logits = matrix(6, 4, 10 + i).requires_grad_();
      teachers[i].features = matrix(6, int64_t(3 + i), 20 + i).requires_grad_();
    }
    setup.teacher_widths = {3, 4};
  }
  Objective objective(std::vector<Choice> choices, std::optional<double> ce = {}) {
    return Objective(choices, nn::Scope(store), setup, ce);
  }
  Loss loss(const Objective& o) { return o({batch, student, taps, teachers, {}}); }
};

TEST(Objective, IsTheWeightedSum) {
  Scene scene;
  Objective o = scene.objective({{"kd", 0.7, {{"T", 2.0}}}, {"aft", {}, {{"beta", int64_t(3)}}}});
  EXPECT_EQ(o.ce_weight(), 0.1);  // of the first method
  EXPECT_TRUE(o.needs_teacher());
  Loss loss = scene.loss(o);
  ASSERT_EQ(loss.parts.size(), 3u);
  KdOptions kd;
  kd.temperature = 2;
  Tensor logits = scene.student.logits;
  double want_kd = 0.5 * (kd_loss(logits, scene.teachers[0].logits, {}, kd).item() +
                          kd_loss(logits, scene.teachers[1].logits, {}, kd).item());
  Tensor psi = cat({scene.teachers[0].features, scene.teachers[1].features}, 1).detach();
  double want_aft = 3 * aft_delta(scene.student.features, psi, zeros({7}, DType::f64)).item();
  EXPECT_EQ(loss.parts[0].name, "ce");
  EXPECT_NEAR(loss.parts[1].value.item(), want_kd, 1e-13);
  EXPECT_NEAR(loss.parts[2].value.item(), want_aft, 1e-13);
  double total = 0;
  for (const Part& part : loss.parts) total += part.weight * part.value.item();
  EXPECT_NEAR(loss.total.item(), total, 1e-13);
  backward(loss.total);
  for (const Teacher& teacher : scene.teachers) {
    EXPECT_FALSE(teacher.logits.grad());
    EXPECT_FALSE(teacher.features.grad());
  }
  ASSERT_EQ(o.groups().size(), 1u);
  EXPECT_EQ(o.groups()[0].names, std::vector<std::string>{"loss.aft.s"});
  EXPECT_EQ(o.groups()[0].lr, 1e-2);
  EXPECT_EQ(o.groups()[0].weight_decay, 0);
}

// A18: the classifier sees only the cross-entropy; s only the regulariser.
TEST(Objective, GradientIsolation) {
  std::vector<std::vector<double>> head_gradients;
  for (double beta : {0.0, 100.0}) {
    Scene scene;
    Tensor weight = matrix(4, 5, 3).requires_grad_(), bias = matrix(1, 4, 4);
    bias = view(bias, {4}).detach().requires_grad_();
    scene.student.logits = linear(scene.student.features, weight, bias);
    Loss loss = scene.loss(scene.objective({{"aft", {}, {{"beta", beta}}}}));
    backward(loss.total);
    std::vector<double> g = weight.grad().values(), b = bias.grad().values();
    g.insert(g.end(), b.begin(), b.end());
    head_gradients.push_back(g);
    Tensor s = scene.store.find("loss.aft.s")->value;
    bool any = false;
    for (double ds : s.grad().values()) any |= ds != 0;
    EXPECT_EQ(any, beta > 0);
  }
  EXPECT_EQ(head_gradients[0], head_gradients[1]);  // bit-identical
}

// What a configuration says of AFT is in its loss, its optimizer group and its report.
TEST(Objective, OptionsOfAft) {
  for (std::string kernel : {"linear", "rbf"})
    for (std::string map : {"diag", "dense", "product"}) {
      Scene scene;
      scene.setup.student_widths = {2, 3};
      Objective o = scene.objective(
          {{"aft", {}, {{"beta", 2.5}, {"kernel", kernel}, {"map", map}, {"s_lr", 0.5}}}}, 0);
      Tensor psi = cat({scene.teachers[0].features, scene.teachers[1].features}, 1);
      Tensor s = scene.store.find("loss.aft.s")->value;
      AftOptions want{aft_kernel_named(kernel), aft_map_named(map), {3, 4}, {2, 3}};
      if (map != "dense") copy_into(s, vector64({-2, -1, 0, 1, 2, 3, 4}));
      EXPECT_NEAR(scene.loss(o).total.item(),
                  2.5 * aft_delta(scene.student.features, psi, s, want).item(), 1e-13)
          << kernel << " " << map;
      ASSERT_EQ(o.groups().size(), 1u);
      EXPECT_EQ(o.groups()[0].lr, 0.5);
      auto& statistics = o.terms()[0].instance.statistics;
      ASSERT_EQ(bool(statistics), map != "dense");
      if (!statistics) continue;
      EXPECT_EQ(statistics()[0].first, "weight_mean");
      EXPECT_NEAR(statistics()[0].second, 0.6335125595514774,
                  1e-14);  // of sigmoid(-2) .. sigmoid(4)
      EXPECT_EQ(statistics()[1].first, "weight_deviation");
      EXPECT_NEAR(statistics()[1].second, 0.31829240192446406, 1e-14);
    }
}

TEST(Objective, OptionsOfKd) {
  std::vector<std::string> reductions = {"batchmean",    "mean",   "sum",
                                         "torchdistill", "cls_kd", "mse_of_probs"};
  for (size_t r = 0; r < reductions.size(); r++)
    for (bool standardize : {false, true}) {
      Scene scene;
      Objective o = scene.objective({{"kd",
                                      1.0,
                                      {{"T", 3.0},
                                       {"reduction", reductions[r]},
                                       {"alpha", 0.25},
                                       {"logit_standardization", standardize},
                                       {"eps", 0.125}}}},
                                    0);
      KdOptions want;
      want.temperature = 3;
      want.reduction = KdReduction(r);
      want.alpha = 0.25;
      want.logit_standardization = standardize;
      want.eps = 0.125;
      double sum = 0;
      for (const Teacher& teacher : scene.teachers)
        sum += kd_loss(scene.student.logits, teacher.logits, scene.batch.labels, want).item();
      EXPECT_NEAR(scene.loss(o).total.item(), sum / 2, 1e-13) << reductions[r];
    }
}

// The other methods that compare features: beta, the learning rates of their maps, one map or two.
TEST(Objective, OptionsOfFeatureMethods) {
  for (std::string method : {"rkd", "aft_no_kernel", "kernel_kd", "kd_feature", "kd_feature 2"}) {
    Scene scene;
    scene.setup.student_width = 5;
    scene.setup.student_widths = {2, 3};
    scene.setup.lr = 0.125;
    std::string name = method.substr(0, method.find(' '));
    std::vector<std::pair<std::string, Value>> options{{"beta", 2.5}};
    if (method == "aft_no_kernel" || method == "kernel_kd") options.push_back({"s_lr", 0.5});
    if (method != name) options.push_back({"modalities", int64_t(2)});
    Objective o = scene.objective({{name, {}, options}}, 0);
    Tensor phi = scene.student.features;
    Tensor psi = cat({scene.teachers[0].features, scene.teachers[1].features}, 1);
    std::vector<nn::Linear> maps;
    std::vector<std::string> names;
    for (std::string part : {"", ".0", ".1"}) {
      std::string path = "loss." + name + ".proj" + part;
      const nn::Param* weight = scene.store.find(path + ".weight");
      if (!weight) continue;
      nn::Store own(0, DType::f64);
      maps.emplace_back(nn::Scope(own), weight->value.dim(1), weight->value.dim(0));
      maps.back().weight = weight->value;
      maps.back().bias = scene.store.find(path + ".bias")->value;
      names.insert(names.end(), {path + ".weight", path + ".bias"});
    }
    ASSERT_EQ(maps.size(), method == "rkd" ? 0u : method == name ? 1u : 2u) << method;
    double want = method == "rkd"             ? rkd_loss(phi, psi).item()
                  : method == "aft_no_kernel" ? aft_no_kernel_loss(phi, psi, maps[0]).item()
                  : method == "kernel_kd"     ? kernel_kd_delta(phi, psi, maps[0]).item()
                                              : kd_feature_loss(phi, psi, maps).item();
    EXPECT_NEAR(scene.loss(o).total.item(), 2.5 * want, 1e-12) << method;
    ASSERT_EQ(o.groups().size(), maps.empty() ? 0u : 1u);
    if (maps.empty()) continue;
    EXPECT_EQ(o.groups()[0].names, names);
    EXPECT_EQ(o.groups()[0].lr, name == "kd_feature" ? 0.125 : 0.5) << method;
    EXPECT_EQ(o.groups()[0].weight_decay, 0);
  }
}

TEST(Objective, WarnsAboutIdleRegularisers) {
  auto warnings = [](const std::string& method, int64_t batch, std::optional<double> weight = {},
                     double beta = 1) {
    Scene scene;
    scene.setup.student_width = 5;
    scene.setup.batch = batch;
    return scene.objective({{method, weight, {{"beta", beta}}}}).terms()[0].instance.warnings;
  };
  for (std::string method : {"aft", "kernel_kd", "rkd", "aft_no_kernel", "kd_feature"}) {
    size_t most = method == "kd_feature" ? 0 : method == "aft_no_kernel" ? 1 : 2;
    for (int64_t batch : {1, 2, 3})
      EXPECT_EQ(warnings(method, batch).size(), size_t(batch) <= most ? 1u : 0u) << method << batch;
    EXPECT_EQ(warnings(method, 3, {}, 0).at(0).find("beta is 0"), 0u);
    EXPECT_EQ(warnings(method, 3, 0).at(0).find("weight is 0"), 0u);
  }
  Scene scene;
  EXPECT_TRUE(scene.objective({{"none", 0, {}}}).terms()[0].instance.warnings.empty());
}

TEST(Objective, FrozenWeightsAreABuffer) {
  Scene scene;
  Objective o = scene.objective({{"aft", {}, {{"learn_s", false}, {"map", std::string("dense")}}}});
  EXPECT_TRUE(o.groups().empty());
  ASSERT_TRUE(scene.store.find("loss.aft.s"));
  EXPECT_TRUE(scene.store.find("loss.aft.s")->buffer);
  double squares = 0;  // N(0, 1) / sqrt(q)
  for (double v : scene.store.find("loss.aft.s")->value.values()) squares += v * v;
  EXPECT_NEAR(squares / 7, 1, 0.5);
  backward(scene.loss(o).total);
  EXPECT_TRUE(scene.student.features.grad());
}

TEST(Objective, TeachersMustBeFinite) {
  Tensor phi = matrix(4, 2, 1), psi = matrix(4, 3, 2);
  psi.data<double>()[4] = NAN;
  nn::Store store(0, DType::f64);
  nn::Linear to(nn::Scope(store, "to"), 2, 3), from_psi(nn::Scope(store, "from"), 3, 2),
      square(nn::Scope(store, "square"), 2, 2);
  std::string hold = " (4,3) hold 1 NaN";
  EXPECT_ERROR(aft_delta(phi, psi, {}), "aft_delta: teacher features" + hold);
  EXPECT_ERROR(aft_delta_plain(phi, psi, {}), "aft_delta: teacher features" + hold);
  EXPECT_ERROR(aft_delta(phi, psi, zeros({3}), {AftKernel::linear, AftMap::product, {1, 2}}),
               "aft_delta: teacher features" + hold);
  EXPECT_ERROR(rkd_loss(phi, psi), "rkd: teacher features" + hold);
  EXPECT_ERROR(kernel_kd_delta(phi, psi, square), "teacher features" + hold);
  EXPECT_ERROR(aft_no_kernel_loss(phi, psi, from_psi), "aft_no_kernel: teacher features" + hold);
  EXPECT_ERROR(kd_feature_loss(phi, psi, {to}), "kd_feature: teacher features" + hold);
  EXPECT_ERROR(factor_transfer_loss(psi, psi), "ft: factors" + hold);
  EXPECT_ERROR(btuning_loss(phi, psi, {1}, {matrix(2, 3, 3)}, matrix(2, 2, 4)),
               "btuning: teacher features" + hold);
  EXPECT_ERROR(logme(psi, zeros({4}, DType::i64)), "logme: features" + hold);
  EXPECT_ERROR(standardize_logits(zeros({3, 1}, DType::f64)), "at least 2 classes");
  EXPECT_ERROR(standardize_logits(zeros({3, 2, 4}, DType::f64)), "at least 2 classes");
  Scene scene;
  Objective ft = scene.objective({{"ft", {}, {}}});
  copy_into(scene.teachers[1].features, scale(scene.teachers[1].features, NAN));
  EXPECT_ERROR(scene.loss(ft), "ft: teacher features (6,4) hold 4 NaN");
}

// What the papers and their code use; the source of each is beside the option.
TEST(Methods, Defaults) {
  const std::map<std::string, std::string> want{
      {"none", "1 1"},
      {"kd", "0.9 0.1 T=4 reduction=batchmean alpha=0.5 logit_standardization=0 eps=1e-07"},
      {"aft", "1 1 beta=10 kernel=linear map=diag learn_s=1 s_lr=0.01"},
      {"aft_no_kernel", "1 1 beta=10 s_lr=0.01"},
      {"btuning", "1 1 beta=100 temperature=0.1"},
      {"ft",
       "1 1 beta=10 code_epochs=500 code_batch=1024 code_lr=0.0003 code_patience=10 "
       "early_stop_on=holdout"},
      {"kd_feature", "1 1 beta=10 modalities=1"},
      {"kernel_kd", "1 1 beta=10 s_lr=0.01"},
      {"rkd", "1 1 beta=10"}};
  std::map<std::string, std::string> got;
  for (const Method* method : list_methods()) {
    std::string& line = got[method->name];
    line = fmt::format("{} {}", method->weight, method->ce_weight);
    for (const Option& option : method->options)
      std::visit(
          [&](const auto& v) {
            if constexpr (std::is_same_v<std::decay_t<decltype(v)>, bool>)
              line += fmt::format(" {}={}", option.name, int(v));
            else
              line += fmt::format(" {}={}", option.name, v);
          },
          option.value);
  }
  EXPECT_EQ(got, want);
}

// What `prepare` keeps of the auto-encoder is what a fit by itself gives.
TEST(FactorTransfer, KeepsTheFittedEncoder) {
  const Method& ft = find_method("ft");
  Options options(ft.options);
  options.set("code_epochs", int64_t(3));
  nn::Store store(3, DType::f64), own(3, DType::f64);
  methods::Setup setup;
  setup.student_width = 5;
  setup.teacher_widths = {6};
  Tensor features = matrix(20, 6, 7);
  Survey survey;
  survey.teacher = [&](size_t) { return features; };
  ft.make(options, nn::Scope(store, "ft"), setup).prepare(survey);
  Autoencoder coder(nn::Scope(own, "ft.teacher0"), 6);
  Tensor rows = cat({slice(features, 0, 0, 9), slice(features, 0, 10, 19)}, 0),
         held = cat({slice(features, 0, 9, 10), slice(features, 0, 19, 20)}, 0);
  fit_autoencoder(own, coder, rows, held, {.epochs = 3});
  for (size_t k = 0; k < 3; k++) {
    std::string layer = concat("ft.teacher0.encoder.", 2 * k, ".");
    EXPECT_EQ(store.find(layer + "weight")->value.values(), coder.encoder[k].weight.values());
    EXPECT_EQ(store.find(layer + "bias")->value.values(), coder.encoder[k].bias.values());
    EXPECT_GT(sum(square(coder.encoder[k].bias)).item(), 0);
  }
}

TEST(Objective, PlainTrainingAndTargets) {
  Scene scene;
  Objective o = scene.objective({{"none", {}, {}}});
  EXPECT_FALSE(o.needs_teacher());
  EXPECT_EQ(scene.loss(o).parts.size(), 1u);
  double with_labels = scene.loss(o).total.item();
  scene.batch.targets = full({6, 4}, 0.25, DType::f64);
  EXPECT_NE(scene.loss(o).total.item(), with_labels);
  EXPECT_NEAR(scene.loss(o).total.item(),
              cross_entropy(scene.student.logits, scene.batch.targets).item(), 0);
  Objective smooth({{"none", {}, {}}}, nn::Scope(scene.store), scene.setup, 2, 0.25);
  EXPECT_NEAR(
      scene.loss(smooth).total.item(),
      2 * cross_entropy(scene.student.logits, scene.batch.targets, {.smoothing = 0.25}).item(),
      1e-14);
}

TEST(Objective, BadInput) {
  Scene scene;
  auto with = [&](const std::string& method, const std::string& option, Value value) {
    return error_of([&] {
      Scene fresh;
      fresh.objective({{method, {}, {{option, value}}}});
    });
  };
  EXPECT_EQ(with("kd", "temprature", 1.0).find("method kd: unknown option"), 0u);
  EXPECT_NE(with("aft", "bta", 1.0).find("beta"), std::string::npos);
  EXPECT_NE(with("kd", "T", std::string("hot")).find("must be a number"), std::string::npos);
  for (double t : {0.0, -2.0, double(NAN)})
    EXPECT_NE(with("kd", "T", t).find("T must"), std::string::npos);
  for (double b : {-1.0, double(NAN), double(INFINITY)})
    EXPECT_NE(with("aft", "beta", b).find("beta must"), std::string::npos);
  EXPECT_NE(with("aft", "s_lr", 0.0).find("s_lr must"), std::string::npos);
  EXPECT_NE(with("aft", "kernel", std::string("linaer")).find("linear"), std::string::npos);
  EXPECT_NE(with("aft", "map", std::string("dence")).find("dense"), std::string::npos);
  EXPECT_ERROR(scene.objective({{"ktd", {}, {}}}), "did you mean kd?");
  EXPECT_ERROR(scene.objective({{"kd", -1.0, {}}}), "weight");
  EXPECT_ERROR(scene.objective({{"kd", INFINITY, {}}}), "weight");
  EXPECT_ERROR(scene.objective({{"kd", {}, {}}}, double(NAN)), "ce_weight");
  for (double smoothing : {-0.1, 1.0, double(NAN)})
    EXPECT_ERROR(Objective({{"kd", {}, {}}}, nn::Scope(scene.store), scene.setup, {}, smoothing),
                 "label smoothing");
  EXPECT_ERROR(scene.objective({{"transmiter", {}, {}}}), "no loss of a training run");
  for (const char* method :
       {"aft", "kernel_kd", "rkd", "aft_no_kernel", "kd_feature", "btuning", "ft"}) {
    Scene fresh;
    fresh.setup.student_width = 5;
    fresh.setup.classes = 4;
    Objective o = fresh.objective({{method, {}, {}}});
    fresh.teachers[1].features = Tensor();
    EXPECT_ERROR(fresh.loss(o), concat(method, ": teacher 'teacher1' gives no features"));
    fresh.setup.teacher_widths = {3, 0};
    EXPECT_ERROR(fresh.objective({{method, {}, {}}}), "gives no features (width 0)");
  }
  EXPECT_ERROR(scene.objective({{"kd", {}, {}}, {"kd", {}, {}}}), "twice");
  EXPECT_ERROR(scene.objective({{"kd", 0.0, {}}}, 0), "every weight");
  EXPECT_ERROR(scene.objective({{"none", {}, {}}}, 0), "every weight");
  Objective kd = scene.objective({{"kd", {}, {}}});
  scene.teachers[1].logits = Tensor();
  EXPECT_ERROR(scene.loss(kd), "teacher1");
  scene.teachers.clear();
  EXPECT_ERROR(scene.loss(kd), "needs a teacher");
}

TEST(Registry, StrangersMayAddMethods) {
  Method method;
  method.name = "pull_to_zero";
  method.needs_teacher = false;
  method.options = {{"power", int64_t(2), "unused"}};
  method.make = [](const Options& options, const nn::Scope&, const methods::Setup&) {
    EXPECT_EQ(options.integer("power"), 2);
    EXPECT_THROW(options.number("power"), Error);
    EXPECT_THROW(options.flag("absent"), Error);
    Instance instance;
    instance.loss = [](const Step& step) { return mean(square(step.student.logits)); };
    return instance;
  };
  size_t before = list_methods().size();
  add_method(method);
  EXPECT_ERROR(add_method(method), "already");
  Scene scene;
  scene.teachers.clear();
  Method nameless = method, empty = method;
  nameless.name = "";
  EXPECT_ERROR(add_method(nameless), "a name");
  empty.name = "empty";
  empty.make = nullptr;
  EXPECT_ERROR(add_method(empty), "`make`");
  Loss loss = scene.loss(scene.objective({{"pull_to_zero", {}, {}}}));
  EXPECT_EQ(loss.parts[1].name, "pull_to_zero");
  EXPECT_EQ(list_methods().size(), before + 1);
  // Taps are asked for once, whoever wants them.
  for (std::string tap : {"a", "b"}) {
    method.name = "tap_" + tap;
    method.options = {};
    method.make = [tap](const Options&, const nn::Scope&, const methods::Setup&) {
      Instance instance;
      instance.student_taps = {"both", tap};
      instance.teacher_taps = {tap, "both"};
      return instance;
    };
    add_method(method);
  }
  Objective taps = scene.objective({{"tap_a", {}, {}}, {"tap_b", {}, {}}});
  EXPECT_EQ(taps.student_taps(), (std::vector<std::string>{"both", "a", "b"}));
  EXPECT_EQ(taps.teacher_taps(), (std::vector<std::string>{"a", "both", "b"}));
}

}  // namespace
}  // namespace pupil::methods
