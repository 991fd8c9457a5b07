// What the samples of the ops cannot show: ties, gradients that are none on purpose, NaN, order.
#include "tensor/ops.h"

#include <functional>

#include "support.h"
#include "tensor/linalg.h"
#include "tensor/memory.h"
#include "tensor/ops/convolution.h"
#include "tensor/ops/depthwise.h"
#include "tensor/ops/gemm.h"
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
  struct {
    std::function<Tensor(const Tensor&)> f;
    double x, slope;
  } const kinks[] = {{relu, 0, 0},
                     {abs, 0, 0},
                     {[](auto& x) { return sqrt(x); }, 0, 0},
                     {[](auto& x) { return leaky_relu(x, 0.2); }, 0, 0.2},
                     {[](auto& x) { return leaky_relu(x, 0.2); }, 1e4, 1},
                     {[](auto& x) { return clamp(x, -1, 2); }, -1, 1},
                     {[](auto& x) { return clamp(x, -1, 2); }, 2, 1},
                     {hard_swish, -3, -0.5},
                     {hard_swish, 3, 1.5}};
  for (DType dtype : {DType::f32, DType::f64})
    for (auto& kink : kinks) {
      Tensor x = full({2}, kink.x, dtype).requires_grad_();
      backward(kink.f(x), full({2}, 1, dtype));
      EXPECT_NEAR(x.grad().values()[0], kink.slope, 1e-7) << &kink - kinks;
    }
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

TEST(Ops, BatchNormKeepsTheLayout) {
  Tensor mean = zeros({16}), variance = full({16}, 1);
  for (bool plain : {false, true})
    for (Layout layout : {Layout::strided, Layout::nhwc, Layout::nchw16c}) {
      set_plain_mode(plain);
      Tensor x = full({2, 16, 3, 3}, 1).to(layout);
      EXPECT_EQ(batch_norm(x, {}, {}, mean, variance).layout(), layout);
    }
  set_plain_mode(false);
}

TEST(Ops, BatchNormPassesNothingAtTheBoundsOfItsActivation) {
  Values rows;
  for (double row : {0, 3, 6}) rows.insert(rows.end(), 16, row);
  for (DType dtype : {DType::f32, DType::f64})
    for (bool six : {false, true}) {
      Tensor x = from(rows, {3, 16}, dtype).requires_grad_();
      Tensor mean = zeros({16}, dtype), variance = full({16}, 1, dtype);
      BatchNormOptions o{
          .eps = 0, .activation = six ? Activation::relu6 : Activation::relu, .residual = {}};
      backward(batch_norm(x, {}, {}, mean, variance, o), full({3, 16}, 1, dtype));
      Values g = x.grad().values();
      EXPECT_EQ((Values{g[0], g[16], g[32]}), (Values{0, 1, six ? 0.0 : 1.0}));
    }
}

// However long the chain: one buffer goes through it.
TEST(Ops, AGradientWithoutAnotherReaderIsOverwritten) {
  auto allocations = [](int length) {
    StepScope step;
    Tensor x = full({1000}, 0.5).requires_grad_(), y = x;
    for (int i = 0; i < length; i++) y = silu(y);
    Tensor cotangent = full({1000}, 1);
    size_t before = Arena::step({}).stats().allocations;
    backward(y, cotangent);
    return Arena::step({}).stats().allocations - before;
  };
  EXPECT_EQ(allocations(2), allocations(5));
}

TEST(Ops, TheFirstOfEqualPixelsIsTheMaximum) {
  for (DType dtype : {DType::f32, DType::f64})
    for (bool adaptive : {false, true}) {
      Tensor x = full({1, 1, 2, 2}, 5, dtype).requires_grad_();
      backward(adaptive ? adaptive_max_pool2d(x, 1) : max_pool2d(x, {.kernel = 2}),
               full({1, 1, 1, 1}, 1, dtype));
      EXPECT_EQ(x.grad().values(), (Values{1, 0, 0, 0}));
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

TEST(Ops, ColumnSumsNeedDenseRows) {
  Tensor x = numbers({1, 2, 3, 4}, {2, 2}), to = zeros({2}, DType::f64);
  EXPECT_THROW(column_sum(transposed(x), to, 0), Error);
  column_sum(x, to, 0);
  EXPECT_EQ(to.values(), (Values{4, 6}));
}

TEST(Ops, DivergenceFromATargetWithZeros) {  // 0 log 0 = 0
  Tensor log_p = numbers({std::log(0.25), std::log(0.75)}, {1, 2});
  EXPECT_NEAR(kl_div(log_p, numbers({0, 1}, {1, 2}), false, Reduction::sum).item(), -std::log(0.75),
              1e-15);
}

TEST(Ops, EqualElementsKeepTheirOrder) {
  Tensor x = numbers({2, 1, 2, 1, 2}, {5});
  EXPECT_EQ(sort(x, 0).indices.values(), (Values{1, 3, 0, 2, 4}));
  EXPECT_EQ(sort(x, 0, true).indices.values(), (Values{0, 2, 4, 1, 3}));
  Tensor columns = numbers({3, 1, 1, 2, 2, 3}, {3, 2});
  EXPECT_EQ(sort(columns, 0).indices.values(), (Values{1, 0, 2, 1, 0, 2}));
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

// An image times a value for every channel stays where it is; other shapes broadcast as ever.
TEST(Ops, AnImageTimesWhatIsNoImage) {
  Values values;
  for (int i = 0; i < 128; i++) values.push_back(i % 7 - 3);
  for (Layout layout : {Layout::nhwc, Layout::nchw16c})
    for (Shape shape : {Shape{2, 16, 1, 1}, {2, 16, 2, 1}, {2, 16, 1, 2}, {1, 16, 1, 1}, {2}}) {
      Tensor x = from(values, {2, 16, 2, 2}, DType::f32), image = x.to(layout);
      Tensor factor =
          from(Values(values.begin(), values.begin() + shape.numel()), shape, DType::f32);
      Tensor y = mul(image, factor);
      EXPECT_EQ(y.values(), mul(x, factor).values()) << shape;
      EXPECT_EQ(y.layout(), shape == (Shape{2, 16, 1, 1}) ? layout : Layout::strided) << shape;
    }
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

// The deviations are to be squared, not the values: the difference of squares has no digits left.
TEST(Ops, NormsFarFromZero) {
  Tensor x = add_scalar(random_normal({8, 4, 32}, 1), 1000).to(DType::f32);
  BatchNormOptions train;
  train.train = true;
  auto normalised = [&](DType dtype) {
    Tensor values = x.to(dtype), mean = zeros({4}, dtype), variance = full({4}, 1, dtype);
    return std::vector{layer_norm(values, {}, {}, 1e-5), group_norm(values, 2, {}, {}),
                       batch_norm(values, {}, {}, mean, variance, train)};
  };
  auto exact = normalised(DType::f64), fast = normalised(DType::f32);
  for (size_t i = 0; i < exact.size(); i++)
    EXPECT_LT(test::largest_difference(fast[i], exact[i]), 1e-3) << i;
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
  int padding, kernel = 3, stride = 1, groups = 1;
};

// Results and gradients, the latter added up twice.
std::vector<Tensor> convolve(const ConvolutionCase& c, DType dtype, bool exact) {
  std::vector<Tensor> v{random_normal({c.batch, c.channels, c.height, c.width}, 1),
                        random_normal({c.outputs, c.channels / c.groups, c.kernel, c.kernel}, 2),
                        random_normal({c.outputs}, 3)};
  for (Tensor& t : v) t = t.to(dtype).requires_grad_();
  set_exact_mode(exact);
  Tensor y;
  for (int twice = 0; twice < 2; twice++) {
    y = to_strided(conv2d(v[0], v[1], v[2], {c.stride, c.padding, 1, c.groups}));
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
                            {11, 32, 32, 12, 12, 1},  // 99 tiles: one beyond whole groups of 14
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
  // Tiles would be enough, but they cannot begin where the image's gradient does.
  ConvolutionCase wide{12, 16, 16, 10, 10, 3};
  std::vector<Tensor> fast = convolve(wide, DType::f32, false),
                      reference = convolve(wide, DType::f64, true);
  for (size_t i = 0; i < 4; i++) EXPECT_LT(relative_error(fast[i], reference[i]), 3e-6) << i;
}

// Several parts of the rows and more channels than take turns at a tile.
TEST(Ops, ConvolutionOfChannelsAlone) {
  for (ConvolutionCase c : {ConvolutionCase{2, 150, 150, 14, 15, 2, 5, 1, 150},
                            {2, 150, 150, 28, 29, 2, 5, 2, 150},
                            {3, 144, 144, 15, 14, 3, 7, 1, 144},
                            {3, 144, 144, 29, 28, 3, 7, 2, 144}}) {
    std::vector<Tensor> fast = convolve(c, DType::f32, false),
                        reference = convolve(c, DType::f64, true);
    for (size_t i = 0; i < 4; i++)
      EXPECT_LT(relative_error(fast[i], reference[i]), 3e-6)
          << c.kernel << " " << c.stride << " " << i;
  }
}

struct Wide {
  const char* name;
  std::vector<Shape> inputs;
  Fn f;
};

// The samples are small: these have several blocks, parts and threads in every kernel.
TEST(Ops, WideInputs) {
  std::vector<int64_t> many(1000);
  for (size_t i = 0; i < many.size(); i++) many[i] = int64_t(i * i % 97);
  Tensor index = places(many);
  auto norm = [](Activation activation, bool residual) {
    return [=](auto& v) {
      Tensor x = conv2d(v[0], v[1], Tensor());
      Tensor mean = zeros({x.dim(1)}, x.dtype()), variance = full({x.dim(1)}, 1, x.dtype());
      BatchNormOptions o{.train = true, .activation = activation, .residual = {}};
      if (residual) o.residual = conv2d(v[0], v[4], Tensor());
      return to_strided(batch_norm(x, v[2], v[3], mean, variance, o));
    };
  };
  std::vector<Wide> cases{
      {"sum of rows", {{3, 9001}}, [](auto& v) { return sum(v[0], {1}); }},
      {"sum of columns", {{9001, 3}}, [](auto& v) { return sum(v[0], {0}); }},
      {"sum of the middle", {{70, 301, 5}}, [](auto& v) { return sum(v[0], {1}); }},
      {"mean", {{3, 50, 101}}, [](auto& v) { return mean(v[0]); }},
      {"variance", {{9001, 2}}, [](auto& v) { return variance(v[0], {0}); }},
      {"amax", {{90, 101}}, [](auto& v) { return amax(v[0], {0}); }},
      {"cumsum", {{5, 3001}}, [](auto& v) { return cumsum(v[0], 1); }},
      {"cumsum of columns", {{301, 50}}, [](auto& v) { return cumsum(v[0], 0); }},
      {"add", {{60, 1, 41}, {1, 50, 41}}, [](auto& v) { return add(v[0], v[1]); }},
      {"mul", {{300, 50}, {300, 1}}, [](auto& v) { return mul(v[0], v[1]); }},
      {"softmax", {{101, 301}}, [](auto& v) { return softmax(v[0], 2); }},
      {"log_softmax", {{101, 301}}, [](auto& v) { return log_softmax(v[0]); }},
      {"cross_entropy", {{1000, 101}}, [=](auto& v) { return cross_entropy(v[0], index); }},
      {"layer_norm",
       {{601, 37}, {37}, {37}},
       [](auto& v) { return layer_norm(v[0], v[1], v[2], 1e-5); }},
      {"normalize", {{901, 41}}, [](auto& v) { return normalize(v[0]); }},
      {"matmul", {{6, 41, 50}, {6, 50, 31}}, [](auto& v) { return matmul(v[0], v[1]); }},
      {"linear", {{701, 61}, {51, 61}, {51}}, [](auto& v) { return linear(v[0], v[1], v[2]); }},
      {"linear in blocks of rows",
       {{1603, 61}, {51, 61}, {51}},
       [](auto& v) { return add(linear(v[0], v[1], v[2]), linear(v[0], v[1], v[2])); }},
      {"mlp in blocks of rows",
       {{1603, 61}, {70, 61}, {70}, {51, 70}, {51}, {1603, 51}},
       [](auto& v) { return mlp(v[0], v[1], v[2], Activation::gelu, v[3], v[4], v[5]); }},
      {"matmul in blocks of rows",
       {{61, 1603}, {61, 51}},
       [](auto& v) {
         return matmul(permute(v[0], {1, 0}), v[1]);
       }},
      {"linear of very many rows, taller than wide",
       {{4099, 37}, {51, 37}},
       [](auto& v) { return add(linear(v[0], v[1], {}), linear(v[0], v[1], {})); }},
      {"sum of very many rows",
       {{51, 4099}, {37, 4099}},
       [](auto& v) { return matmul(v[0], v[1], false, true); }},
      {"embedding", {{97, 41}}, [=](auto& v) { return embedding(v[0], index); }},
      {"index_add",
       {{97, 41}, {1000, 41}},
       [=](auto& v) { return index_add(v[0], 0, index, v[1]); }},
      {"gather",
       {{97, 10}},
       [=](auto& v) {
         return gather(v[0], 0, view(index, {100, 10}));
       }},
      {"scatter_add",
       {{97, 10}, {100, 10}},
       [=](auto& v) {
         return scatter_add(v[0], 0, view(index, {100, 10}), v[1]);
       }},
      {"sort", {{11, 901}}, [](auto& v) { return sort(v[0], 1).values; }},
      {"topk", {{11, 901}}, [](auto& v) { return topk(v[0], 17).values; }},
      {"qkv_attention of heads of 16",
       {{3, 71, 192}},
       [](auto& v) { return qkv_attention(v[0], 4); }},
      {"of 24", {{3, 71, 288}}, [](auto& v) { return qkv_attention(v[0], 4); }},
      {"of 32", {{1, 245, 192}}, [](auto& v) { return qkv_attention(v[0], 2); }},
      {"of 48", {{2, 20, 288}}, [](auto& v) { return qkv_attention(v[0], 2); }},
      {"of 64", {{2, 65, 384}}, [](auto& v) { return qkv_attention(v[0], 2); }},
      {"of 80", {{2, 3, 720}}, [](auto& v) { return qkv_attention(v[0], 3); }},
      {"of 176", {{1, 121, 528}}, [](auto& v) { return qkv_attention(v[0], 1); }},
      {"embed_tokens",
       {{41, 30, 25}, {1, 1, 25}, {1, 31, 25}},
       [](auto& v) { return embed_tokens(v[0], v[1], v[2]); }},
      {"patches", {{7, 3, 32, 48}}, [](auto& v) { return patches(v[0], 16); }},
      {"unfold", {{3, 4, 31, 30}}, [](auto& v) { return unfold(v[0], {.kernel = 3}); }},
      {"pixel_shuffle", {{3, 36, 20, 21}}, [](auto& v) { return pixel_shuffle(v[0], 3); }},
      {"interpolate",
       {{2, 5, 40, 31}},
       [](auto& v) {
         return interpolate(v[0], {.mode = InterpolateOptions::Mode::bicubic, .size = {21, 50}});
       }},
      {"adaptive_max_pool2d",
       {{3, 5, 40, 31}},
       [](auto& v) { return adaptive_max_pool2d(v[0], 7); }},
      {"pad",
       {{4, 5, 40, 41}},
       [](auto& v) {
         return pad(v[0], {1, 2, 3, 4}, Border::reflect);
       }},
      {"dropout",
       {{9001}},
       [](auto& v) {
         return dropout(v[0], 0.5, RngKey{1, 2, 3});
       }},
      {"cdist", {{60, 9}, {70, 9}}, [](auto& v) { return cdist(v[0], v[1]); }},
      {"conv_transpose2d",
       {{3, 16, 14, 15}, {16, 20, 3, 3}, {20}},
       [](auto& v) {
         return conv_transpose2d(v[0], v[1], v[2], {2, 1});
       }},
      {"shortcut_a",
       {{5, 3, 21, 20}, {16, 3, 1, 1}},
       [](auto& v) { return to_strided(shortcut_a(conv2d(v[0], v[1], Tensor()), 2, 32)); }},
      {"global_avg_pool",
       {{5, 3, 21, 20}, {48, 3, 1, 1}},
       [](auto& v) { return global_avg_pool(conv2d(v[0], v[1], Tensor())); }},
      {"avg_pool2d", {{5, 3, 21, 20}, {40, 3, 1, 1}}, [](auto& v) {
         return to_strided(avg_pool2d(conv2d(v[0], v[1], Tensor()), {.kernel = 3, .padding = 1}));
       }}};
  for (int64_t channels : {20, 48})  // in both layouts of images
    for (auto [name, activation] : {std::pair{"batch_norm none", Activation::none},
                                    {"batch_norm relu", Activation::relu},
                                    {"batch_norm relu6", Activation::relu6},
                                    {"batch_norm silu", Activation::silu}})
      for (bool residual : {false, true}) {
        Shape kernel{channels, 3, 1, 1};
        cases.push_back({name,
                         {{5, 3, 23, 22}, kernel, {channels}, {channels}, kernel},
                         norm(activation, residual)});
      }
  for (const Wide& c : cases) {
    auto run = [&](DType dtype) {
      std::vector<Tensor> v;
      for (size_t k = 0; k < c.inputs.size(); k++)
        v.push_back(random_normal(c.inputs[k], k).to(dtype).requires_grad_());
      std::vector<Tensor> results{c.f(v)};
      backward(results[0], random_normal(results[0].shape(), 9).to(dtype));
      for (Tensor& x : v)
        if (x.grad()) results.push_back(x.grad());
      return results;
    };
    std::vector<Tensor> fast = run(DType::f32), reference = run(DType::f64);
    ASSERT_EQ(fast.size(), reference.size());
    for (size_t i = 0; i < fast.size(); i++)
      EXPECT_LT(relative_error(fast[i], reference[i]), 1e-5) << c.name << " " << i;
  }
}

// Blocks of rows of two bytes into blocks of rows of two and of four.
TEST(Ops, ProductOfManyRowsInBf16) {
  Tensor a = random_normal({1603, 40}, 1).to(DType::bf16),
         b = random_normal({40, 30}, 2).to(DType::bf16);
  Tensor exact = matmul(a.to(DType::f64), b.to(DType::f64));
  for (auto [out, error] : {std::pair{DType::f32, 1e-5}, {DType::bf16, 4e-3}}) {
    Tensor c = empty({1603, 30}, out);
    gemm(a, b, c);
    EXPECT_LT(relative_error(c, exact), error);
  }
}

// What is done on rows as a product delivers them is what would be done on the whole, bit for bit.
TEST(Ops, MlpIsItsParts) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (int64_t rows : {100, 1603})  // as a whole, and in blocks
      for (Activation activation :
           {Activation::gelu, Activation::gelu_tanh, Activation::quick_gelu, Activation::relu}) {
        auto run = [&](bool parts, bool gradients) {
          std::vector<Tensor> v;
          for (const Shape& shape :
               std::vector<Shape>{{rows, 64}, {70, 64}, {50, 70}, {rows, 50}, {70}, {50}})
            v.push_back(random_normal(shape, v.size()).to(DType::f32).requires_grad_(gradients));
          Tensor x = to_dtype(v[0], dtype), residual = to_dtype(v[3], dtype);
          Tensor y =
              parts ? add(residual, linear(activate(linear(x, v[1], v[4]), activation), v[2], v[5]))
                    : mlp(x, v[1], v[4], activation, v[2], v[5], residual);
          std::vector<Tensor> results{y};
          if (gradients) backward(y, random_normal(y.shape(), 9).to(dtype));
          for (Tensor& t : v)
            if (t.grad()) results.push_back(t.grad());
          return results;
        };
        std::vector<Tensor> whole = run(false, true), parts = run(true, true);
        ASSERT_EQ(whole.size(), 7u);
        for (size_t i = 0; i < whole.size(); i++)
          EXPECT_EQ(whole[i].values(), parts[i].values()) << i << " of " << rows << " rows";
        EXPECT_EQ(run(false, false)[0].values(), parts[0].values());
      }
}

// Chains whose images between the layers are large run in bands of rows: every stride, filter and
// border, and every number of rows that the last band can have.
TEST(ConvChain, InBandsIsOneLayerAfterTheOther) {
  struct {
    int64_t height, width, in, inner, out;
    int kernel;
    Pair stride, padding;
    bool residual;
    int dilation = 1;
    bool bands = true;
  } cases[] = {
      {56, 56, 24, 144, 24, 3, 1, 1, true},           {57, 70, 24, 144, 24, 3, 2, 1, false},
      {112, 112, 16, 96, 24, 3, 2, 1, false},         {61, 56, 8, 160, 8, 5, 1, 2, true},
      {59, 90, 8, 160, 20, 5, 2, 2, false},           {50, 60, 8, 160, 8, 3, 1, 0, false},
      {70, 80, 8, 128, 16, 3, {2, 1}, {0, 1}, false}, {64, 60, 8, 160, 8, 3, 1, 2, true, 2},
      {60, 60, 8, 160, 8, 1, 1, 1, false, 1, false}};  // rows of the padding alone
  NoGrad off;
  set_cpu_threads(2, false);
  for (auto& c : cases) {
    Tensor x = random_normal({3, c.in, c.height, c.width}, 1).to(DType::f32).to(Layout::nhwc);
    auto value = [](const Shape& shape, uint64_t seed, double size) {
      return scale(random_normal(shape, seed), size).to(DType::f32);
    };
    std::vector<ConvLayer> layers{
        {value({c.inner, c.in, 1, 1}, 2, 0.5), value({c.inner}, 3, 1), {}, Activation::relu6},
        {value({c.inner, 1, c.kernel, c.kernel}, 4, 0.5),
         Tensor(),
         {c.stride, c.padding, c.dilation, int(c.inner)},
         Activation::hard_swish},
        {value({c.out, c.inner, 1, 1}, 5, 0.3),
         value({c.out}, 6, 1),
         {},
         c.residual ? Activation::relu : Activation::none}};
    std::string where = concat(c.height, "x", c.width, ", kernel ", c.kernel);
    for (DType dtype : {DType::f32, DType::bf16}) {
      Tensor from = to_dtype(x, dtype), added = c.residual ? from : Tensor(), y = from;
      for (const ConvLayer& layer : layers)
        y = conv2d_tail(y, layer, &layer == &layers.back() ? added : Tensor());
      // Bands leave no room for what whole images would have between the layers.
      size_t between = size_t(3 * c.inner * c.height * c.width) * size_of(dtype);
      Arena& arena = Arena::current({});
      if (cpu_has_avx512() && c.bands) arena.set_limit(arena.stats().live + y.bytes() + between);
      Tensor banded;
      EXPECT_NO_THROW(banded = conv2d_chain(from, layers, added)) << where;
      arena.set_limit(SIZE_MAX);
      if (!banded) continue;
      double size = 0;
      for (double v : y.values()) size = std::max(size, std::abs(v));
      EXPECT_LT(test::largest_difference(banded, y), (dtype == DType::f32 ? 1e-6 : 1e-2) * size)
          << where << ", " << name_of(dtype);
      if (c.bands) {
        set_cpu_threads(1, false);
        EXPECT_EQ(conv2d_chain(from, layers, added).values(), banded.values()) << where;
        set_cpu_threads(2, false);
      }
      // Whether bands are taken depends on the threads, in exact mode nothing may.
      set_exact_mode(true);
      EXPECT_EQ(conv2d_chain(from, layers, added).values(), y.values()) << where;
      set_exact_mode(false);
    }
  }
  set_cpu_threads(0);
}

TEST(ConvChain, OfEqualSizesKeepsTheLayersApart) {
  NoGrad off;
  Tensor x = random_normal({2, 32, 96, 96}, 1).to(DType::f32).to(Layout::nhwc), y = x;
  std::vector<ConvLayer> layers;
  for (uint64_t seed = 2; seed < 8; seed += 2) {
    Tensor weight = scale(random_normal({32, 32, 1, 1}, seed), 0.2).to(DType::f32);
    layers.push_back({weight, random_normal({32}, seed + 1).to(DType::f32), {}});
    y = conv2d_tail(y, layers.back(), {});
  }
  EXPECT_LT(test::largest_difference(conv2d_chain(x, layers, {}), y), 1e-4);
}

TEST(ConvChain, EndsInADepthwiseLayerWithAResidual) {
  NoGrad off;
  Tensor x = random_normal({2, 8, 64, 64}, 1).to(DType::f32).to(Layout::nhwc);
  std::vector<ConvLayer> layers{
      {permute(random_normal({8, 160, 1, 1}, 2).to(DType::f32), {1, 0, 2, 3}),
       Tensor(),
       {},
       Activation::relu},
      {random_normal({160, 1, 3, 3}, 3).to(DType::f32), Tensor(), {1, 1, 1, 160}}};
  Tensor residual = random_normal({2, 160, 64, 64}, 4).to(DType::f32);  // row-major
  Tensor y = conv2d_tail(conv2d_tail(x, layers[0], {}), layers[1], residual);
  EXPECT_LT(test::largest_difference(conv2d_chain(x, layers, residual), y), 1e-4);
  Tensor narrow = random_normal({2, 160, 64, 63}, 4).to(DType::f32);
  for (const Tensor& wrong : {narrow, residual.to(DType::f64)}) {
    EXPECT_THROW(conv2d_chain(x, layers, wrong), Error);
    EXPECT_THROW(conv2d_tail(x, layers[0], wrong), Error);
  }
}

// Of all outputs at once, of some at a time, both by Winograd; direct; from a picture; in bf16; of
// bands. The same bits as without, and after the first call nobody reads the weights.
TEST(ConvLayer, KeepsPreparedKernels) {
  struct {
    Shape x, weight;
    ConvOptions options;
    DType dtype = DType::f32;
    bool chain = false;
  } cases[] = {{{3, 32, 12, 15}, {48, 32, 3, 3}, {1, 1}},
               {{3, 192, 8, 8}, {176, 192, 3, 3}, {1, 1}},
               {{3, 32, 12, 15}, {48, 32, 3, 3}, {2, 1}},
               {{3, 3, 12, 16}, {32, 3, 3, 3}, {1, 1}},
               {{3, 32, 12, 15}, {32, 32, 3, 3}, {1, 1}, DType::bf16},
               {{3, 24, 56, 56}, {144, 24, 1, 1}, {}, DType::f32, true}};
  NoGrad off;
  for (auto& c : cases) {
    Tensor x = random_normal(c.x, 1).to(c.dtype);
    if (c.chain) x = x.to(Layout::nhwc);
    std::vector<ConvLayer> layers{{random_normal(c.weight, 2).to(DType::f32),
                                   random_normal({c.weight[0]}, 3).to(DType::f32), c.options,
                                   Activation::relu}};
    if (c.chain) layers.push_back({random_normal({8, 144, 3, 3}, 4).to(DType::f32), Tensor(), 1});
    Tensor one = slice(x, 0, 1, 2).contiguous().to(x.layout());
    std::vector<double> three = conv2d_chain(x, layers, {}).values(),
                        single = conv2d_chain(one, layers, {}).values();
    for (ConvLayer& layer : layers) layer.prepared = std::make_shared<PreparedKernels>();
    EXPECT_EQ(conv2d_chain(x, layers, {}).values(), three) << c.weight;
    EXPECT_EQ(conv2d_chain(one, layers, {}).values(), single) << c.weight;
    for (ConvLayer& layer : layers) copy_into(layer.weight, zeros(layer.weight.shape()));
    EXPECT_EQ(conv2d_chain(x, layers, {}).values(), three) << c.weight;
    EXPECT_EQ(conv2d_chain(one, layers, {}).values(), single) << c.weight;
  }
}

// The kernel for what lies in a core's cache: every way that a filter can leave the image, channels
// that fill no vector, rows and columns that fill no tile.
TEST(Depthwise, ForwardIsTheConvolution) {
  if (!cpu_has_avx512()) GTEST_SKIP() << "this processor has no AVX-512";
  struct {
    int64_t channels, height, width;
    int kernel, stride;
    Pair padding;
    Activation activation;
    bool bias;
  } cases[] = {{16, 4, 9, 3, 1, 1, Activation::none, true},
               {40, 9, 16, 3, 1, 1, Activation::relu6, true},
               {150, 7, 15, 3, 1, {0, 1}, Activation::relu, false},
               {17, 5, 8, 3, 1, {2, 0}, Activation::hard_swish, true},
               {33, 8, 17, 3, 2, 1, Activation::none, false},
               {16, 9, 30, 3, 2, {1, 0}, Activation::hard_swish, false},
               {20, 8, 14, 5, 1, 2, Activation::relu6, true},
               {32, 7, 29, 5, 2, {2, 1}, Activation::relu, true},
               {3, 3, 3, 5, 2, 2, Activation::none, true},
               {1, 1, 1, 3, 1, 1, Activation::none, false}};
  NoGrad off;
  for (auto& c : cases) {
    Tensor x = random_normal({2, c.channels, c.height, c.width}, 1),
           weight = random_normal({c.channels, 1, c.kernel, c.kernel}, 2),
           bias = c.bias ? random_normal({c.channels}, 3) : Tensor();
    ConvOptions options{c.stride, c.padding, 1, int(c.channels)};
    Tensor y = conv2d_tail(x, {weight, bias, options, c.activation}, {});  // in f64
    ConvGeometry s = conv_geometry(x.shape(), x.dtype(), weight, bias, options);
    ASSERT_TRUE(depthwise::has_forward({s, Layout::nhwc, Layout::nhwc, DType::f32}));
    Tensor packed = empty({depthwise::packed_weights(s)});
    depthwise::pack_weights(s, weight.to(DType::f32).data<float>(), packed.data<float>());
    Tensor ours = empty_image(y.shape(), DType::f32, Layout::nhwc);
    Tensor image = x.to(DType::f32).to(Layout::nhwc), b = bias ? bias.to(DType::f32) : bias;
    depthwise::forward(s, image.data<float>(), packed.data<float>(), data_or_null<float>(b),
                       c.activation, ours.data<float>());
    EXPECT_LT(test::largest_difference(ours, y), 1e-5)
        << c.channels << "x" << c.height << "x" << c.width << ", kernel " << c.kernel;
  }
}

// At the bound of each condition. That an op names itself and the shapes shows in the samples, too.
TEST(Ops, WrongInputIsRefused) {
  auto t = [](const Shape& shape) { return full(shape, 0.5); };
  Tensor row = t({3}), square = t({3, 3}), image = t({1, 1, 2, 2}), wide = t({2, 4, 3, 3});
  Tensor rank6 = t({1, 1, 1, 1, 1, 1}), index = places({0, 1}), label = places({0, 1, 2});
  Tensor index6 = zeros({1, 1, 1, 1, 1, 1}, DType::i64), none;
  struct Case {
    std::string op;
    std::function<void()> f;
  };
  std::vector<Case> cases{
      {"qkv_attention",
       [&] {
         qkv_attention(t({1, 2, 6}), 0);
       }},
      {"batch_norm", [&, m = row]() mutable { batch_norm(row, none, none, m, m); }},
      {"batch_norm", [&, m = row]() mutable { batch_norm(square, row, none, m, m); }},
      {"batch_norm",
       [&, m = row]() mutable { batch_norm(square.to(DType::f64), none, none, m, m); }},
      {"cayley",
       [&] {
         cayley(t({3, 3}).to(DType::bf16));
       }},
      {"conv_transpose2d",
       [&] {
         conv_transpose2d(wide, t({4, 2, 3, 3}), none, {1, 0, 1, 0});
       }},
      {"conv_transpose2d",
       [&] {
         conv_transpose2d(wide, t({4, 2, 3, 3}), none, {1, -1});
       }},
      {"conv_transpose2d",
       [&] {
         conv_transpose2d(wide, t({4, 2, 3, 3}), none, {0});
       }},
      {"conv_transpose2d",
       [&] {
         conv_transpose2d(wide, t({4, 2, 3, 3}), none, {1, 0, 0});
       }},
      {"conv_transpose2d",
       [&] {
         conv_transpose2d(wide, t({4, 2, 3, 3}), none, {2}, -1);
       }},
      {"conv_transpose2d",
       [&] {
         conv_transpose2d(t({1, 4, 0, 3}), t({4, 2, 3, 3}), none);
       }},
      {"conv_transpose2d",
       [&] {
         conv_transpose2d(t({1, 4, 3, 0}), t({4, 2, 3, 3}), none);
       }},
      {"cross_entropy",
       [&] {
         cross_entropy(t({2, 0}), index);
       }},
      {"cross_entropy", [&] { cross_entropy(square, label, {.smoothing = -0.1}); }},
      {"cross_entropy", [&] { cross_entropy(square, label, {.smoothing = 1.1}); }},
      {"cross_entropy", [&] { cross_entropy(square, label.to(DType::i32)); }},
      {"cosine_similarity", [&] { cosine_similarity(row, row, 0, 0); }},
      {"cosine_similarity", [&] { cosine_similarity(row, row, -2); }},
      {"cdist", [&] { cdist(row, square); }},
      {"cdist", [&] { cdist(square, row); }},
      {"cdist", [&] { cdist(rank6, rank6); }},
      {"dropout", [&] { dropout(row, -0.1, RngKey{}); }},
      {"dropout", [&] { dropout(row, -0.1, row); }},
      {"dropout", [&] { dropout(row, 1, row); }},
      {"drop_path", [&] { drop_path(row, -0.1, RngKey{}); }},
      {"drop_path", [&] { drop_path(row, 1, row); }},
      {"drop_path", [&] { drop_path(t({}), 0.5, row); }},
      {"einsum", [&] { einsum("ab->ac,bc", square, square); }},
      {"einsum", [&] { einsum("a1,1b->ab", square, square); }},
      {"einsum", [&] { einsum("ab,bc->aca", square, square); }},
      {"einsum",
       [&] {
         einsum("abcd,efg->abcdefg", image, t({1, 1, 1}));
       }},
      {"embed_tokens",
       [&] {
         embed_tokens(square, none, t({1, 3, 3}));
       }},
      {"embed_tokens",
       [&] {
         embed_tokens(t({1, 3, 3}), none, square);
       }},
      {"embed_tokens",
       [&] {
         embed_tokens(t({1, 2, 3}), t({1, 3, 1}), t({1, 3, 3}));
       }},
      {"embed_tokens",
       [&] {
         embed_tokens(t({1, 2, 3}), none, full({1, 2, 3}, 1, DType::f64));
       }},
      {"embed_tokens",
       [&] {
         embed_tokens(t({1, 2, 3}), full({1, 1, 3}, 1, DType::f64), t({1, 3, 3}));
       }},
      {"embedding", [&] { embedding(square, index6); }},
      {"embedding", [&] { embedding(square, index, -4); }},
      {"one_hot", [&] { one_hot(index6, 1); }},
      {"gather", [&] { gather(row, 0, places({-1})); }},
      {"gather", [&] { gather(row, 0, row); }},
      {"scatter_add", [&] { scatter_add(row, 0, index, square); }},
      {"scatter_add", [&] { scatter_add(row, 0, index, full({3}, 1, DType::f64)); }},
      {"group_norm", [&] { group_norm(wide, 0, none, none); }},
      {"group_norm", [&] { group_norm(wide, 2, none, row); }},
      {"haar", [&] { haar(row.to(DType::bf16)); }},
      {"svd", [&] { svd(square.to(DType::bf16)); }},
      {"svd",
       [&] {
         svd(full({2, 2}, INFINITY));
       }},
      {"index_select",
       [&] {
         index_select(row, view(index, {1, 2}));
       }},
      {"index_select", [&] { index_select(row, row); }},
      {"index_add",
       [&] {
         index_add(row, 0, view(index, {1, 2}), row);
       }},
      {"index_add", [&] { index_add(row, 0, index, full({2}, 1, DType::f64)); }},
      {"cat", [&] { cat({}, 0); }},
      {"cat",
       [&] {
         cat({row, full({3}, 1, DType::f64)}, 0);
       }},
      {"stack", [&] { stack({}, 0); }},
      {"stack",
       [&] {
         stack({row, row}, -3);
       }},
      {"stack",
       [&] {
         stack({rank6, rank6}, 0);
       }},
      {"layer_norm", [&] { layer_norm(t({}), none, none, 1e-5); }},
      {"layer_norm", [&] { layer_norm(square, row, none, 1e-5); }},
      {"layer_norm", [&] { layer_norm(square.to(DType::f64), row, row, 1e-5); }},
      {"layer_norm", [&] { layer_norm(square, row, row.to(DType::f64), 1e-5); }},
      {"layer_norm",
       [&] {
         layer_norm(square, t({3, 1}), t({3, 1}), 1e-5);
       }},
      {"linear", [&] { linear(t({}), square, none); }},
      {"linear", [&] { linear(row, row, none); }},
      {"linear",
       [&] {
         linear(row, square, t({3, 1}));
       }},
      {"linear",
       [&] {
         linear(row, full({3, 3}, 1, DType::f64), none);
       }},
      {"linear", [&] { linear(row, square, full({3}, 1, DType::f64)); }},
      {"nll_loss", [&] { nll_loss(row, label); }},
      {"nll_loss", [&] { nll_loss(square, label.to(DType::i32)); }},
      {"nll_loss", [&] { nll_loss(square.to(DType::i64), label); }},
      {"matmul", [&] { matmul(square, row); }},
      {"matmul",
       [&] {
         matmul(square, full({3, 3}, 1, DType::f64));
       }},
      {"normalize", [&] { normalize(row, 0); }},
      {"orthogonal",
       [&] {
         orthogonal(t({4, 3}), t({4, 3}));
       }},
      {"orthogonal",
       [&] {
         orthogonal(square, full({3, 3}, 1, DType::f64));
       }},
      {"patches", [&] { patches(image, 0); }},
      {"patches",
       [&] {
         patches(t({1, 1, 4, 3}), 2);
       }},
      {"pixel_shuffle", [&] { pixel_shuffle(square, 1); }},
      {"pixel_unshuffle", [&] { pixel_unshuffle(square, 1); }},
      {"pixel_unshuffle", [&] { pixel_unshuffle(image, 0); }},
      {"pixel_unshuffle",
       [&] {
         pixel_unshuffle(t({1, 1, 2, 3}), 2);
       }},
      {"max_pool2d", [&] { max_pool2d(square, {}); }},
      {"max_pool2d",
       [&] {
         max_pool2d(wide, {.kernel = 3, .padding = {2, 1}});
       }},
      {"max_pool2d",
       [&] {
         max_pool2d(wide, {.kernel = 3, .padding = {1, 2}});
       }},
      {"max_pool2d",
       [&] {
         max_pool2d(image, {.kernel = {1, 3}});
       }},
      {"avg_pool2d", [&] { avg_pool2d(wide, {.dilation = 2}); }},
      {"sum", [&] { sum(square, {-3}); }},
      {"interpolate",
       [&] {
         interpolate(image, {.size = {2, 0}});
       }},
      {"interpolate",
       [&] {
         interpolate(image, {.size = {0, 2}});
       }},
      {"interpolate", [&] { interpolate(image, {.scale_h = 2}); }},
      {"interpolate", [&] { interpolate(image, {.scale_w = 2}); }},
      {"interpolate", [&] { interpolate(image, {.scale_h = 2, .scale_w = 0.1}); }},
      {"interpolate", [&] { interpolate(image, {.scale_h = -2, .scale_w = 2}); }},
      {"interpolate",
       [&] {
         interpolate(image, {.size = {2, 0}, .scale_h = 2, .scale_w = 2});
       }},
      {"interpolate", [&] { interpolate(image, {.size = 2, .scale_h = 2}); }},
      {"interpolate", [&] { interpolate(image, {.size = 2, .scale_w = 2}); }},
      {"interpolate", [&] { interpolate(image, {.size = 2, .align_corners = true}); }},
      {"slice", [&] { slice(row, 0, -1, 1); }},
      {"slice", [&] { slice(row, 0, 2, 1); }},
      {"slice", [&] { slice(row, 0, 0, 3, 0); }},
      {"to_dtype", [&] { to_dtype(row, DType::f16); }},
      {"shortcut_a", [&] { shortcut_a(image, 0, 1); }},
      {"shortcut_a", [&] { shortcut_a(square, 1, 3); }},
      {"solve",
       [&] {
         solve(square, full({3, 1}, 1, DType::f64));
       }},
      {"fold", [&] { fold(square, 2, {}); }},
      {"variance",
       [&] {
         variance(t({0, 3}), {0}, -1);
       }},
      {"where", [&] { where(label, row, full({3}, 1, DType::f64)); }}};
  for (Shape shape : {Shape{3, 3, 3}, {1, 1, 0, 2}, {1, 1, 2, 0}}) {
    Tensor x = t(shape);
    cases.push_back({"adaptive_max_pool2d", [=] { adaptive_max_pool2d(x, 1); }});
    cases.push_back({"adaptive_avg_pool2d", [=] { adaptive_avg_pool2d(x, 2); }});
    cases.push_back({"global_avg_pool", [=] { global_avg_pool(x); }});
    cases.push_back({"interpolate", [=] { interpolate(x, {.size = 1}); }});
  }
  for (Pair size : {Pair(0, 1), Pair(1, 0)}) {
    cases.push_back({"adaptive_max_pool2d", [=] { adaptive_max_pool2d(image, size); }});
    cases.push_back({"adaptive_avg_pool2d", [=] { adaptive_avg_pool2d(image, size); }});
    cases.push_back({"conv2d", [=] { conv2d(wide, wide, none, {size}); }});
    cases.push_back({"conv2d", [=] { conv2d(wide, wide, none, {1, 0, size}); }});
    Pair less(size.h - 1, size.w - 1);
    cases.push_back({"conv2d", [=] { conv2d(wide, t({4, 4, 1, 1}), none, {1, less}); }});
    Pair more(size.h + 3, size.w + 3);
    cases.push_back({"conv2d", [=] { conv2d(wide, t({4, 4, more.h, more.w}), none); }});
  }
  struct {
    Shape embed;
    int prefix, h, w, new_h, new_w;
  } const grids[] = {{{2, 4, 3}, 0, 2, 2, 3, 3}, {{1, 4, 3}, -1, 1, 5, 3, 3},
                     {{1, 1, 3}, 1, 0, 2, 3, 3}, {{1, 1, 3}, 1, 2, 0, 3, 3},
                     {{1, 4, 3}, 0, 2, 2, 0, 3}, {{1, 4, 3}, 0, 2, 2, 3, 0}};
  for (auto& g : grids)
    cases.push_back({"resample_pos_embed", [=, embed = t(g.embed)] {
                       resample_pos_embed(embed, g.prefix, g.h, g.w, g.new_h, g.new_w);
                     }});
  for (size_t i = 0; i < cases.size(); i++) {
    std::string message = "nothing was refused";
    try {
      cases[i].f();
    } catch (const Error& error) {
      message = error.what();
    }
    EXPECT_NE(message.find(cases[i].op + ":"), std::string::npos)
        << "case " << i << ", " << cases[i].op << ": " << message;
  }
}

TEST(Ops, TheLeastInputIsComputed) {
  auto t = [](const Shape& shape) { return full(shape, 0.5); };
  Tensor row = t({3}), rank5 = t({1, 1, 1, 1, 1}), mean = zeros({3}), variance = zeros({3});
  EXPECT_EQ(clamp(row, 1, 1).values(), Values(3, 1));
  batch_norm(t({2, 3}), {}, {}, mean, variance, {.train = true, .residual = {}});
  EXPECT_EQ(mean.shape(), Shape{3});
  EXPECT_EQ(conv_transpose2d(t({1, 1, 1, 1}), t({1, 1, 2, 2}), {}, {1, 0, 2}, 1).shape(),
            (Shape{1, 1, 4, 4}));
  EXPECT_GT(cross_entropy(t({1, 2}), places({0}), {.smoothing = 1}).item(), 0);
  EXPECT_EQ(cdist(rank5, rank5).shape(), (Shape{1, 1, 1, 1, 1}));
  EXPECT_EQ(embedding(t({3, 2}), places({0, 1}), -3).shape(), (Shape{2, 2}));
  EXPECT_EQ(embedding(t({3, 2}), zeros({1, 1, 1, 1, 1}, DType::i64)).rank(), 6);
  EXPECT_EQ(one_hot(zeros({1, 1, 1, 1, 1}, DType::i64), 1).rank(), 6);
  EXPECT_EQ(stack({row}, 1).shape(), (Shape{3, 1}));
  EXPECT_EQ(stack({rank5}, -6).rank(), 6);
  EXPECT_EQ(pad(row, {-1, -2}).shape(), Shape{0});
  EXPECT_EQ(pad(row, {2, 0}, Border::reflect).shape(), Shape{5});
  EXPECT_EQ(patches(t({1, 1, 1, 1}), 1).shape(), (Shape{1, 1, 1}));
  EXPECT_EQ(pixel_shuffle(t({1, 1, 1}), 1).shape(), (Shape{1, 1, 1}));
  EXPECT_EQ(pixel_unshuffle(t({1, 1, 1}), 1).shape(), (Shape{1, 1, 1}));
  EXPECT_EQ(max_pool2d(t({1, 1, 2, 2}), {.kernel = 2, .padding = 1}).shape(), (Shape{1, 1, 2, 2}));
  EXPECT_EQ(sum(t({1, 1}), {-2, -1}).shape(), Shape{});
  EXPECT_EQ(slice(row, 0, 3, 3).shape(), Shape{0});
  EXPECT_EQ(topk(row, 3).values.shape(), Shape{3});
  EXPECT_EQ(topk(row, 0).values.shape(), Shape{0});
  EXPECT_EQ(orthogonal(t({2, 2}), t({2, 2})).shape(), (Shape{2, 2}));
}

}  // namespace
}  // namespace pupil
