// What the samples of the ops cannot show: ties, gradients that are none on purpose, NaN, order.
#include "tensor/ops.h"

#include "support.h"
#include "tensor/random.h"
#include "tensor/runtime.h"

namespace pupil {
namespace {

Tensor numbers(std::vector<double> values, const Shape& shape) {
  return from(values, shape).requires_grad_();
}
Tensor places(std::vector<int64_t> values) { return from(values, {int64_t(values.size())}); }
using Values = std::vector<double>;

TEST(Ops, TiesShareTheGradient) {
  Tensor x = numbers({3, 1, 3, 1, 1, 1}, {2, 3});
  backward(amax(x, {1}), numbers({6, 6}, {2}));
  EXPECT_EQ(x.grad().values(), (Values{3, 0, 3, 2, 2, 2}));
  for (auto f : {maximum, minimum}) {
    Tensor a = numbers({1, 5}, {2}), b = numbers({1, 5}, {2});
    backward(f(a, b), numbers({2, 4}, {2}));
    EXPECT_EQ(a.grad().values(), (Values{1, 2}));
    EXPECT_EQ(b.grad().values(), (Values{1, 2}));
  }
}

TEST(Ops, KinksAndFarValues) {
  Tensor x = numbers({0, -1e4, 1e4}, {3});
  backward(leaky_relu(x, 0.2), numbers({1, 1, 1}, {3}));
  EXPECT_EQ(x.grad().values(), (Values{0.2, 0.2, 1}));
  for (DType dtype : {DType::f32, DType::f64}) {
    Tensor far = numbers({-1e4, 1e4}, {2}).to(dtype).requires_grad_();
    for (auto f : {silu, quick_gelu, softplus}) {
      far.zero_grad();
      Tensor y = f(far);
      EXPECT_EQ(y.values(), (Values{0, 1e4}));
      backward(y, full({2}, 1, dtype));
      EXPECT_EQ(far.grad().values(), (Values{0, 1}));
    }
  }
}

TEST(Ops, NaNIsNotHidden) {
  Tensor x = numbers({1, NAN, 2}, {3}), y = numbers({NAN, 1, 1}, {3});
  EXPECT_TRUE(std::isnan(amax(x).item()) && std::isnan(amin(x).item()));
  Tensor larger = maximum(x, y);
  EXPECT_TRUE(std::isnan(larger.values()[0]) && std::isnan(larger.values()[1]));
  EXPECT_EQ(argmax(x, 0).item(), 1);
}

TEST(Ops, WhatWhereDoesNotChooseHasNoEffect) {
  Tensor a = numbers({1, NAN}, {2}), b = numbers({NAN, 2}, {2});
  Tensor y = where(places({1, 0}), a, b);
  EXPECT_EQ(y.values(), (Values{1, 2}));
  backward(y, numbers({3, 4}, {2}));
  EXPECT_EQ(a.grad().values(), (Values{3, 0}));
  EXPECT_EQ(b.grad().values(), (Values{0, 4}));
}

TEST(Ops, TheRowOfThePaddingHasNoGradient) {
  for (int64_t padding : {1, -2}) {
    Tensor weight = numbers({1, 2, 3}, {3, 1});
    Tensor y = embedding(weight, places({1, 2, 2, 1}), padding);
    EXPECT_EQ(y.values(), (Values{2, 3, 3, 2}));
    backward(y, numbers({1, 1, 1, 1}, {4, 1}));
    EXPECT_EQ(weight.grad().values(), (Values{0, 0, 2}));
  }
}

TEST(Ops, EqualElementsKeepTheirOrder) {
  Tensor x = numbers({2, 1, 2, 1, 2}, {5});
  EXPECT_EQ(sort(x, 0).indices.values(), (Values{1, 3, 0, 2, 4}));
  EXPECT_EQ(sort(x, 0, true).indices.values(), (Values{0, 2, 4, 1, 3}));
  EXPECT_EQ(argmax(x, 0).item(), 0);
  EXPECT_EQ(topk(x, 2, 0).indices.values(), (Values{0, 2}));
}

TEST(Ops, TheGradientOverAnEmptyBatchIsZero) {
  Tensor x = zeros({0, 3, 4}), w = full({4, 5}, 1).requires_grad_();
  backward(matmul(x, w), zeros({0, 3, 5}));
  EXPECT_EQ(w.grad().values(), Values(20, 0));
}

TEST(Ops, BordersOfAPicture) {
  Tensor x = numbers({1, 2, 3}, {3});
  EXPECT_EQ(pad(x, {2, 1}, Border::reflect).values(), (Values{3, 2, 1, 2, 3, 2}));
  EXPECT_EQ(pad(x, {2, 1}, Border::replicate).values(), (Values{1, 1, 1, 2, 3, 3}));
  EXPECT_EQ(pad(x, {-1, 1}, Border::constant, 7).values(), (Values{2, 3, 7}));
}

// The mean in float32 is itself wrong by more than the deviation allows.
TEST(Ops, VarianceFarFromZero) {
  Tensor x = from(Values{1e6 + 0.5, 1e6 + 1, 1e6 + 1.5, 1e6 + 4}, {4}, DType::f32);
  EXPECT_NEAR(variance(x, {}).item(), 2.4166666, 1e-6);
}

TEST(CrossEntropy, IgnoredRowsAndClassWeights) {
  Values z{1, 2, 0, 0.5, 0.25, -1};
  Tensor two = numbers(z, {2, 3}), one = numbers({1, 2, 0}, {1, 3});
  CrossEntropyOptions o{.ignore_index = 255};
  Tensor loss = cross_entropy(two, places({2, 255}), o);
  EXPECT_NEAR(loss.item(), cross_entropy(one, places({2})).item(), 1e-12);
  backward(loss);
  for (int j = 3; j < 6; j++) EXPECT_EQ(two.grad().values()[size_t(j)], 0);
  EXPECT_EQ(cross_entropy_rows(two, places({2, 255}), o).values()[1], 0);
  EXPECT_TRUE(std::isnan(cross_entropy(two, places({255, 255}), o).item()));
  o.class_weight = from(Values{1, 2, 3}, {3});
  Tensor rows = cross_entropy_rows(two, places({2, 1}), o),
         plain = cross_entropy_rows(two, places({2, 1}));
  EXPECT_NEAR(rows.values()[0], 3 * plain.values()[0], 1e-12);
  EXPECT_NEAR(cross_entropy(two, places({2, 1}), o).item(), sum(rows).item() / 5, 1e-12);
}

Tensor random_normal(const Shape& shape, uint64_t seed) {
  Values values;
  for (int64_t i = 0; i < shape.numel(); i++) values.push_back(normal({seed, 0, 0}, i));
  return from(values, shape);
}

// Root of the mean square of the difference, relative to that of the second.
double relative_error(const Tensor& a, const Tensor& b) {
  Values x = a.values(), y = b.values();
  double difference = 0, size = 0;
  for (size_t i = 0; i < y.size(); i++) {
    difference += (x[i] - y[i]) * (x[i] - y[i]);
    size += y[i] * y[i];
  }
  return std::sqrt(difference / size);
}

struct ConvolutionCase {
  int64_t batch, channels, outputs, height, width;
  int padding;
};

// Results and gradients, the latter added up twice.
std::vector<Tensor> convolve(const ConvolutionCase& c, DType dtype, bool exact) {
  std::vector<Tensor> v{random_normal({c.batch, c.channels, c.height, c.width}, 1),
                        random_normal({c.outputs, c.channels, 3, 3}, 2),
                        random_normal({c.outputs}, 3)};
  for (Tensor& t : v) t = t.to(dtype).requires_grad_();
  set_exact_mode(exact);
  Tensor y;
  for (int twice = 0; twice < 2; twice++) {
    y = to_strided(conv2d(v[0], v[1], v[2], {1, c.padding}));
    backward(y, random_normal(y.shape(), 4).to(dtype));
  }
  set_exact_mode(false);
  return {y, v[0].grad(), v[1].grad(), v[2].grad()};
}

// Tiles whole and cut at the border, in one and in several rounds; few and many channels, which
// the threads share in different ways; an odd number of blocks; a gradient that is there already.
TEST(Ops, ConvolutionByWinograd) {
  if (!cpu_has_avx512()) GTEST_SKIP() << "this processor has no AVX-512";
  for (ConvolutionCase c : {ConvolutionCase{7, 16, 16, 8, 8, 1},
                            {40, 32, 32, 12, 12, 1},
                            {5, 48, 80, 15, 12, 1},
                            {9, 32, 16, 9, 14, 0},
                            {7, 16, 48, 6, 6, 2},
                            {84, 176, 176, 7, 7, 1}}) {
    bool small = c.channels < 100;
    std::vector<Tensor> winograd = convolve(c, DType::f32, false),
                        direct = convolve(c, DType::f32, true),
                        reference = small ? convolve(c, DType::f64, true) : direct;
    for (size_t i = 0; i < 4; i++)
      EXPECT_LT(relative_error(winograd[i], reference[i]), small ? 3e-6 : 1e-5)
          << c.channels << " " << i;
    for (size_t i = 0; i < 3; i++)
      EXPECT_NE(winograd[i].values(), direct[i].values()) << "not used: " << c.channels << " " << i;
  }
}

}  // namespace
}  // namespace pupil
