// The engine below the ops: random bits, memory, copies, the tape.
#include "autograd/autograd.h"
#include "support.h"
#include "tensor/launch.h"
#include "tensor/memory.h"
#include "tensor/ops.h"
#include "tensor/ops/vector_math.h"

namespace pupil {
namespace {

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "nothing was thrown";
}
#define EXPECT_MESSAGE(expression, text)                                              \
  do {                                                                                \
    std::string message = message_of([&] { expression; });                            \
    EXPECT_NE(message.find(text), std::string::npos) << message << " lacks " << text; \
  } while (0)

Tensor random(const Shape& shape, uint32_t stream, DType dtype = DType::f32, double scale = 1) {
  std::vector<double> v(size_t(shape.numel()));
  for (size_t i = 0; i < v.size(); i++)
    v[i] = scale * (2 * double(uniform({5, stream, 0}, int64_t(i))) - 1);
  return from(v, shape, dtype);
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         memcmp(a.contiguous().raw(), b.contiguous().raw(), a.bytes()) == 0;
}

// ---- random bits ----

TEST(Philox, KnownAnswers) {  // Random123, kat_vectors, philox4x32-10
  auto expect = [](uint64_t seed, U4 counter, U4 answer) {
    U4 r = philox(seed, counter);
    EXPECT_EQ(r.x, answer.x);
    EXPECT_EQ(r.y, answer.y);
    EXPECT_EQ(r.z, answer.z);
    EXPECT_EQ(r.w, answer.w);
  };
  expect(0, {0, 0, 0, 0}, {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u});
  expect(~0ull, {~0u, ~0u, ~0u, ~0u}, {0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu});
  expect(0x299f31d0a4093822ull, {0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u},
         {0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u});
}

TEST(Philox, ElementsStepsAndStreams) {
  RngKey key{7, 3, 11};
  U4 block = philox(7, {2, 3, 11, 0});
  EXPECT_EQ(random_bits(key, 8), block.x);
  EXPECT_EQ(random_bits(key, 11), block.w);
  EXPECT_NE(random_bits(key, 0), random_bits({7, 4, 11}, 0));
  EXPECT_NE(random_bits(key, 0), random_bits({7, 3, 12}, 0));
  EXPECT_NE(random_bits(key, 0), random_bits(key, int64_t(1) << 34));
  Rng rng(7, 2);
  EXPECT_EQ(rng.next().op, 0u);
  EXPECT_EQ(rng.next().op, 1u);
  rng.advance();
  RngKey next = rng.next();
  EXPECT_EQ(next.op, 0u);
  EXPECT_EQ(next.step, 3u);
}

TEST(Philox, Distributions) {
  double sum = 0, normal_sum = 0, normal_square = 0;
  constexpr int n = 20000;
  for (int i = 0; i < n; i++) {
    float u = uniform({1, 0, 0}, i);
    ASSERT_TRUE(u >= 0 && u < 1 && u * 0x1p24f == std::floor(u * 0x1p24f));
    sum += double(u);
    double z = normal({1, 1, 0}, i);
    normal_sum += z;
    normal_square += z * z;
  }
  EXPECT_NEAR(sum / n, 0.5, 0.01);
  EXPECT_NEAR(normal_sum / n, 0, 0.03);
  EXPECT_NEAR(normal_square / n, 1, 0.04);
}

// ---- words ----

TEST(Core, BrainFloatRoundsToNearestEven) {
  EXPECT_EQ(bf16(1.0f).bits, 0x3f80);
  EXPECT_EQ(bf16(1.00390625f).bits, 0x3f80);  // half way, to the even neighbour below
  EXPECT_EQ(bf16(1.01171875f).bits, 0x3f82);  // half way, to the even neighbour above
  EXPECT_EQ(float(bf16(INFINITY)), INFINITY);
  EXPECT_EQ(float(bf16(3.4e38f)), INFINITY);
  EXPECT_TRUE(std::isnan(float(bf16(NAN))));
}

TEST(Core, SuggestsOnlyWhatIsNear) {
  std::vector<std::string> names{"epochs", "lr", "temperature"};
  EXPECT_EQ(did_you_mean("epoch", names), "; did you mean epochs?");
  EXPECT_EQ(did_you_mean("lrs", names, "train."), "; did you mean train.lr?");
  EXPECT_EQ(did_you_mean("temp", names), "; did you mean temperature?");
  EXPECT_EQ(did_you_mean("zebra", names, "x."), "; known: x.epochs, x.lr, x.temperature");
  EXPECT_EQ(did_you_mean("zebra", std::vector<std::string>(13, "epochs")), "");
  EXPECT_EQ(did_you_mean("zebra", {}), "");
}

TEST(Core, NotANumberHasNoSign) {
  EXPECT_EQ(concat(-std::abs(NAN), " ", -NAN, " ", -std::abs(float(NAN)), " ", -1.5),
            "nan nan nan -1.5");
}

TEST(Core, ErrorsSayWhatAndWhere) {
  Tensor x = zeros({2, 3}), y = zeros({2, 4});
  EXPECT_MESSAGE(add(x, y), "add: cannot broadcast (2,3) with (2,4)");
  EXPECT_MESSAGE(x.data<double>(), "(2,3) is f32, asked for f64");
  EXPECT_MESSAGE(x.item(), "item() on a tensor of shape (2,3)");
  EXPECT_MESSAGE(Shape({1, -1}), "negative dimension -1");
  EXPECT_MESSAGE(Shape({1, 1, 1, 1, 1, 1, 1}), "rank 7 is above 6");
  EXPECT_MESSAGE(copy_into(x, y), "copy_into: (2,4) into (2,3)");
  EXPECT_MESSAGE(view(x, {4}), "view: (2,3) as (4)");
  EXPECT_MESSAGE(matmul(x, y), "(2,3)");
  EXPECT_MESSAGE(relu(zeros({2}, DType::i64)), "relu: f64, f32 or bf16 expected, got (2) i64");
  EXPECT_MESSAGE(backward(x), "nothing in this graph requires a gradient");
  EXPECT_MESSAGE(empty_image({1, 20, 2, 2}, DType::f32, Layout::nchw16c), "multiple of 16");
#if !PUPIL_CUDA
  EXPECT_THROW(x.to(Device{DeviceKind::cuda, 0}), InputError);
#endif
}

TEST(Core, VectorMathAgainstDouble) {
  double worst_exp = 0, worst_tail = 0;
  for (int i = 0; i <= 400000; i++) {
    float x = -87.3f + 176.0f * float(i) / 400000;
    double exact = std::exp(double(x));
    worst_exp = std::max(worst_exp, std::fabs(double(vector_exp(x)) - exact) / exact);
    float a = 8.0f * float(i) / 400000;
    double tail = 0.5 * std::erfc(double(a) * std::sqrt(0.5));
    // e^(-a^2/2) has the relative error of its argument: a^2/2 roundings.
    double allowed = 1 + double(a) * double(a) / 4;
    worst_tail =
        std::max(worst_tail, std::fabs(double(normal_tail(a).tail) - tail) / tail / allowed);
  }
  EXPECT_LT(worst_exp, 2 * 0x1p-23);
  EXPECT_LT(worst_tail, 4 * 0x1p-23);
  EXPECT_EQ(vector_exp(-INFINITY), 0.0f);
  EXPECT_EQ(vector_exp(-1e4f), 0.0f);
  EXPECT_EQ(vector_exp(INFINITY), INFINITY);
  EXPECT_EQ(vector_exp(1e4f), INFINITY);
  EXPECT_EQ(vector_exp(0.0f), 1.0f);
  EXPECT_TRUE(std::isnan(vector_exp(NAN)));
}

TEST(Core, ActivationsDoNotOverflow) {
  std::vector<double> v{-1e4, -100, 0, 100, 1e4};
  for (bool plain : {false, true}) {
    set_plain_mode(plain);
    for (auto f : {+[](const Tensor& x) { return gelu(x); },
                   +[](const Tensor& x) { return gelu(x, true); }}) {
      Tensor x = from(v, {5}, DType::f32).requires_grad_(), y = f(x);
      EXPECT_EQ(y.values(), (std::vector<double>{0, 0, 0, 100, 1e4}));
      backward(y, full({5}, 1));
      EXPECT_EQ(x.grad().values(), (std::vector<double>{0, 0, 0.5, 1, 1}));
    }
    Tensor x = from(v, {5}, DType::f32).requires_grad_(), y = sigmoid(x);
    EXPECT_EQ(y.values()[0], 0);
    EXPECT_EQ(y.values()[2], 0.5);
    EXPECT_EQ(y.values()[4], 1);
    backward(y, full({5}, 1));
    EXPECT_EQ(x.grad().values()[0], 0);
    EXPECT_EQ(relu(from(std::vector<double>{NAN, -1, 2}, {3}, DType::f32)).values()[1], 0);
    EXPECT_TRUE(std::isnan(relu(full({1}, NAN)).item()));
  }
  set_plain_mode(false);
}

TEST(Core, GradientsAtKinks) {
  Tensor x = zeros({3}).requires_grad_();
  for (auto f : {relu, abs, static_cast<Tensor (*)(const Tensor&)>(sqrt)}) {
    x.zero_grad();
    backward(f(x), full({3}, 1));
    EXPECT_EQ(x.grad().values(), (std::vector<double>{0, 0, 0}));
  }
  Tensor edge = from(std::vector<double>{-1, 1, 2}, {3}, DType::f32).requires_grad_();
  backward(clamp(edge, -1, 1), full({3}, 1));
  EXPECT_EQ(edge.grad().values(), (std::vector<double>{1, 1, 0}));
  Tensor zero_row = zeros({1, 3}).requires_grad_(), y = normalize(zero_row, 0.5);
  EXPECT_EQ(y.values(), (std::vector<double>{0, 0, 0}));
  backward(y, full({1, 3}, 1));
  EXPECT_EQ(zero_row.grad().values(), (std::vector<double>{2, 2, 2}));
}

TEST(Core, SoftmaxOfInfinities) {
  for (bool plain : {false, true}) {
    set_plain_mode(plain);
    Tensor x = from(std::vector<double>{0, -INFINITY, 0}, {1, 3}, DType::f32).requires_grad_();
    Tensor y = softmax(x);
    EXPECT_EQ(y.values(), (std::vector<double>{0.5, 0, 0.5}));
    backward(y, from(std::vector<double>{1, 5, 2}, {1, 3}, DType::f32));
    EXPECT_EQ(x.grad().values(), (std::vector<double>{-0.25, 0, 0.25}));
    // Nothing to choose from is an error; NaN, wherever it stands, goes through.
    for (DType dtype : {DType::f32, DType::f64})
      for (auto f : {softmax, log_softmax}) {
        const double inf = INFINITY, nan = NAN;
        EXPECT_THROW(f(from(std::vector<double>{0, 1, -inf, -inf}, {2, 2}, dtype), 1), Error);
        for (auto row : {std::vector<double>{nan, -inf}, {-inf, nan}, {nan, nan}, {nan, 0}})
          for (double p : f(from(row, {1, 2}, dtype), 1).values()) EXPECT_TRUE(std::isnan(p));
      }
  }
  set_plain_mode(false);
}

// Bits do not depend on the number of threads: sizes above the limit where loops are shared.
TEST(Core, ThreadCountDoesNotChangeBits) {
  Tensor x = random({333, 1001}, 1, DType::f32, 3), b = random({1001}, 2);
  Tensor weight = random({40, 125}, 4);
  Tensor labels = from(std::vector<int64_t>(333, 5), {333});
  auto all = [&] {
    std::vector<Tensor> results;
    auto run = [&](auto f) {
      Tensor leaf = x.detach().requires_grad_(), bias = b.detach().requires_grad_();
      Tensor y = f(leaf, bias);
      backward(y, full(y.shape(), 0.5, y.dtype()));
      results.push_back(y.detach());
      if (leaf.grad()) results.push_back(leaf.grad());
      if (bias.grad()) results.push_back(bias.grad());
    };
    run([](auto& t, auto&) { return gelu(t); });
    run([](auto& t, auto&) { return gelu(t, true); });
    run([](auto& t, auto&) { return exp(t); });
    run([](auto& t, auto&) { return sigmoid(t); });
    run([](auto& t, auto&) { return sum(t); });
    run([](auto& t, auto&) { return mean(t, {0}); });
    run([](auto& t, auto&) { return mean(t, {1}); });
    run([](auto& t, auto&) { return softmax(t); });
    run([](auto& t, auto&) { return log_softmax(t, 4); });
    run([&](auto& t, auto&) { return cross_entropy(t, labels, {.smoothing = 0.1}); });
    run([](auto& t, auto&) { return normalize(t); });
    run([](auto& t, auto&) { return dropout(t, 0.3, {1, 2, 3}); });
    run([](auto& t, auto& s) { return mul(add(t, s), s); });
    run([](auto& t, auto& s) { return div(t, add_scalar(square(s), 1)); });
    run([](auto& t, auto&) { return view(permute(t, {1, 0}), {333 * 1001}); });
    run([](auto& t, auto&) {
      return qkv_attention(view(scale(slice(t, 1, 0, 960), 2), {9, 37, 960}), 5);
    });
    run([&](auto& t, auto&) {  // enough rows for blocks of them on every number of threads below
      return linear(view(slice(t, 1, 0, 1000), {2664, 125}), weight, {});
    });
    run([&](auto& t, auto& s) {
      Tensor x = view(slice(t, 1, 0, 1000), {2664, 125}), bias = slice(s, 0, 0, 40);
      return mlp(x, weight, bias, Activation::gelu, permute(weight, {1, 0}), {}, x);
    });
    return results;
  };
  for (bool plain : {false, true}) {
    set_plain_mode(plain);
    set_cpu_threads(1, false);
    auto one = all();
    for (int threads : {2, 3, 5}) {
      set_cpu_threads(threads, false);
      auto many = all();
      ASSERT_EQ(one.size(), many.size());
      for (size_t i = 0; i < one.size(); i++)
        EXPECT_TRUE(same_bits(one[i], many[i])) << "result " << i << ", " << threads << " threads";
    }
  }
  set_plain_mode(false);
  set_cpu_threads(0);
}

// The fast dropout draws exactly the mask that the definition says.
TEST(Core, DropoutMaskIsADefinition) {
  RngKey key{9, 4, 1ull << 33};
  Tensor x = full({1500}, 1);
  for (bool plain : {false, true}) {
    set_plain_mode(plain);
    std::vector<double> y = dropout(x, 0.25, key).values();
    for (size_t i = 0; i < y.size(); i++)
      ASSERT_EQ(y[i], uniform(key, int64_t(i)) < 0.25f ? 0.0 : double(float(1 / 0.75))) << i;
    y = drop_path(full({50, 3}, 1), 0.25, key).values();
    for (size_t i = 0; i < y.size(); i++)
      ASSERT_EQ(y[i] == 0, uniform(key, int64_t(i / 3)) < 0.25f);
  }
  set_plain_mode(false);
}

// ---- copies ----

// On a processor with AVX-512 this holds the two compilations of one loop against each other; on
// others it runs the common one twice.
TEST(Loops, WidestVectorsGiveTheSameBits) {
  static constexpr int64_t kCount = 100003;  // with a remainder, and enough for all threads
  std::vector<float> common(kCount), widest(kCount);
  auto body = [](float* y) {
    return [y](int64_t piece) {
      int64_t end = std::min(kCount, (piece + 1) * 1000);
#pragma omp simd
      for (int64_t i = piece * 1000; i < end; i++) {
        NormalTail tail = normal_tail(float(i % 9001) * 1e-3f);
        y[i] = tail.tail + 2 * tail.kernel;
      }
    };
  };
  parallel_for(kCount / 1000 + 1, kCount, body(common.data()));
  parallel_for<Vectors::widest>(kCount / 1000 + 1, kCount, body(widest.data()));
  EXPECT_EQ(memcmp(common.data(), widest.data(), kCount * sizeof(float)), 0);
  EXPECT_NEAR(widest[0], 2.5f, 1e-6);                            // P(X > 0) = 1/2, e^0 = 1
  EXPECT_EQ(std::count(widest.begin(), widest.end(), 0.0f), 0);  // every element was written
}

TEST(Copies, BetweenDtypes) {
  std::vector<double> v{0, 1, 2, 3, 200, 255};
  for (DType a : {DType::f64, DType::f32, DType::bf16, DType::i64, DType::i32, DType::u8})
    for (DType b : {DType::f64, DType::f32, DType::bf16, DType::i64, DType::i32, DType::u8}) {
      Tensor x = from(v, {2, 3}, a), y = x.to(b);
      EXPECT_EQ(y.dtype(), b);
      EXPECT_EQ(y.values(), v) << name_of(a) << " to " << name_of(b);
    }
}

TEST(Copies, BetweenLayouts) {
  Tensor x = random({2, 32, 3, 5}, 1);
  for (Layout a : {Layout::strided, Layout::nhwc, Layout::nchw16c})
    for (Layout b : {Layout::strided, Layout::nhwc, Layout::nchw16c}) {
      Tensor y = x.to(a).to(b);
      EXPECT_EQ(y.layout(), b);
      EXPECT_TRUE(same_bits(y.contiguous(), x)) << name_of(a) << " to " << name_of(b);
    }
  const float* p = x.data<float>();
  Tensor in_nhwc = x.to(Layout::nhwc), in_blocks = x.to(Layout::nchw16c);
  const float *nhwc = in_nhwc.data<float>(), *blocks = in_blocks.data<float>();
  int64_t n = 1, c = 21, h = 2, w = 3, at = ((n * 32 + c) * 3 + h) * 5 + w;
  EXPECT_EQ(nhwc[((n * 3 + h) * 5 + w) * 32 + c], p[at]);
  EXPECT_EQ(blocks[(((n * 2 + c / 16) * 3 + h) * 5 + w) * 16 + c % 16], p[at]);
  Tensor low = x.to(Layout::nhwc).to(DType::bf16);
  EXPECT_EQ(low.layout(), Layout::nhwc);
  EXPECT_TRUE(same_bits(low.contiguous(), x.to(DType::bf16)));
}

TEST(Copies, BetweenStrides) {
  Tensor x = random({3, 4, 5}, 1), y = zeros({5, 3, 4});
  Tensor swapped = permute(x, {2, 0, 1});
  copy_into(y, swapped);
  std::vector<double> v = x.values(), w = y.values();
  for (int64_t a = 0; a < 3; a++)
    for (int64_t b = 0; b < 4; b++)
      for (int64_t c = 0; c < 5; c++)
        ASSERT_EQ(w[size_t((c * 3 + a) * 4 + b)], v[size_t((a * 4 + b) * 5 + c)]);
  copy_into(permute(y, {1, 2, 0}), scale(x, 2));
  EXPECT_EQ(permute(y, {1, 2, 0}).values(), scale(x, 2).values());
  Tensor repeated = expand(slice(x, 1, 2, 3), {3, 6, 5}).contiguous();
  for (int64_t k = 0; k < 6; k++)
    EXPECT_EQ(slice(repeated, 1, k, k + 1).values(), slice(x, 1, 2, 3).values());
  Tensor large = random({300, 400}, 2), turned = permute(large, {1, 0}).contiguous();
  EXPECT_EQ(permute(turned, {1, 0}).values(), large.values());
  EXPECT_EQ(slice(large, 1, 1, 400, 3).values(),
            permute(slice(turned, 0, 1, 400, 3), {1, 0}).values());
}

TEST(Copies, ViewsShareMemory) {
  Tensor x = random({4, 6}, 1);
  EXPECT_EQ(view(x, {24}).raw(), x.raw());
  EXPECT_EQ(permute(x, {1, 0}).raw(), x.raw());
  EXPECT_EQ(slice(x, 0, 2, 4).raw(), x.data<float>() + 12);
  EXPECT_EQ(expand(x, {2, 4, 6}).raw(), x.raw());
  EXPECT_EQ(x.detach().raw(), x.raw());
  EXPECT_NE(x.clone().raw(), x.raw());
}

// ---- arenas ----

std::vector<void*> training_step(const Tensor& w, uint64_t& trace, MemoryStats& stats) {
  std::vector<void*> addresses;
  {
    StepScope step;
    Tensor x = random({16, 32}, 3), y = gelu(matmul(x, w));
    Tensor loss = mean(square(add(y, softmax(y))));
    backward(loss);
    addresses = {x.raw(), y.raw(), loss.raw()};
    stats = Arena::step({}).stats();
  }
  trace = Arena::step({}).trace();
  return addresses;
}

TEST(Arena, EqualStepsHaveEqualAddresses) {
  if (std::getenv("PUPIL_DIRECT_ALLOC")) GTEST_SKIP() << "the arena gives no addresses";
  Tensor w = random({32, 8}, 1).requires_grad_();
  {
    ModelScope model;
    w.impl()->grad = zeros({32, 8}).pointer();
  }
  uint64_t trace[3];
  MemoryStats stats[3];
  std::vector<void*> addresses[3];
  for (int i = 0; i < 3; i++) {
    w.impl()->grad_is_set = false;
    addresses[i] = training_step(w, trace[i], stats[i]);
  }
  EXPECT_EQ(addresses[1], addresses[2]);
  EXPECT_EQ(trace[1], trace[2]);
  EXPECT_EQ(stats[1].live, stats[2].live);
  EXPECT_EQ(stats[1].reserved, stats[2].reserved);
  EXPECT_EQ(Arena::step({}).stats().live, 0u);
}

TEST(Arena, BestFitAndMergedHoles) {
  if (std::getenv("PUPIL_DIRECT_ALLOC")) GTEST_SKIP() << "the arena gives no addresses";
  StepScope step;
  set_redzones(false);
  auto bytes = [](int64_t n) { return empty({n}, DType::u8); };
  {
    Tensor a = bytes(1024), wall1 = bytes(64), b = bytes(2048), wall2 = bytes(64), c = bytes(512),
           d = bytes(512), wall3 = bytes(64);
    void *at_a = a.raw(), *at_b = b.raw(), *at_c = c.raw();
    a = b = c = d = Tensor();  // holes of 1024, 2048 and 512 + 512, which merge
    Tensor large = bytes(2000), first = bytes(1000), second = bytes(1024);
    EXPECT_EQ(large.raw(), at_b);
    EXPECT_TRUE((first.raw() == at_a && second.raw() == at_c) ||
                (first.raw() == at_c && second.raw() == at_a));
    size_t reserved = Arena::step({}).stats().reserved;
    large = Tensor();
    Tensor again = bytes(2048);
    EXPECT_EQ(again.raw(), at_b);
    EXPECT_EQ(Arena::step({}).stats().reserved, reserved);
  }
  set_redzones(true);
}

TEST(Arena, LeaksAreNamed) {
  Tensor kept;
  std::string message = message_of([&] {
    StepScope step;
    kept = relu(random({3, 7}, 1));
    view(kept, {21});
  });
  EXPECT_NE(message.find("outlive"), std::string::npos) << message;
  EXPECT_NE(message.find("(3,7) f32  relu"), std::string::npos) << message;
  kept = Tensor();
  EXPECT_EQ(message_of([] { StepScope step; }), "nothing was thrown");
}

TEST(Arena, ModelScopeInsideAStep) {
  StepScope step;
  Tensor kept;
  {
    ModelScope model;
    kept = zeros({5});
  }
  EXPECT_EQ(Arena::step({}).stats().live, 0u);
  EXPECT_MESSAGE(StepScope(), "already open");
}

TEST(Arena, LimitNamesTheLargestTensors) {
  StepScope step;
  Tensor large = scale(zeros({100, 100}), 2);
  Arena::step({}).set_limit(50000);
  std::string message = message_of([] { zeros({100, 50}); });
  Arena::step({}).set_limit(SIZE_MAX);
  EXPECT_NE(message.find("limit"), std::string::npos) << message;
  EXPECT_NE(message.find("(100,100) f32  scale"), std::string::npos) << message;
}

TEST(Tensors, ShapesWhoseBytesOverflowAreRefused) {
  const int64_t huge = int64_t(1) << 61;  // times the 8 bytes of a number: 0
  Shape negative{2, 3};
  negative[1] = -3;
  for (Shape shape : {Shape{huge, 8}, Shape{huge}, Shape{3, huge}, negative})
    EXPECT_THROW(empty(shape, DType::f64), Error) << shape;
  EXPECT_EQ(empty({0, 5}).bytes(), 0u);
}

TEST(Arena, FreshMemoryIsPoisoned) {
  for (double v : empty({70}).values()) EXPECT_TRUE(std::isnan(v));
}

TEST(ArenaDeathTest, WritingBeyondATensorIsFound) {
  EXPECT_DEATH(
      {
        Tensor t = scale(zeros({3}), 1);
        t.data<float>()[3] = 1;
      },
      "scale wrote beyond its tensor of 12 bytes");
}

// ---- the tape ----

TEST(Tape, SharedGradients) {
  Tensor x = random({4}, 1).requires_grad_(), y = random({4}, 2).requires_grad_();
  backward(add(x, x), full({4}, 1));
  EXPECT_EQ(x.grad().values(), (std::vector<double>{2, 2, 2, 2}));
  backward(add(x, y), full({4}, 1));  // one cotangent for two leaves
  EXPECT_NE(x.grad().raw(), y.grad().raw());
  EXPECT_EQ(x.grad().values(), (std::vector<double>{3, 3, 3, 3}));
  EXPECT_EQ(y.grad().values(), (std::vector<double>{1, 1, 1, 1}));
  Tensor seed = full({4}, 1);  // the caller's cotangent is not written to
  Tensor z = relu(add_scalar(x, 10));
  backward(z, seed);
  EXPECT_EQ(seed.values(), (std::vector<double>{1, 1, 1, 1}));
  Tensor a = random({4}, 3).requires_grad_(), b = random({4}, 4).requires_grad_();
  backward(add(view(a, {2, 2}), view(b, {2, 2})), full({2, 2}, 1));  // the same through views
  backward(scale(a, 5), full({4}, 1));
  EXPECT_EQ(a.grad().values(), (std::vector<double>{6, 6, 6, 6}));
  EXPECT_EQ(b.grad().values(), (std::vector<double>{1, 1, 1, 1}));
}

TEST(Tape, DiamondsAndBranches) {
  Tensor x = from(std::vector<double>{0.5, -2}, {2}).requires_grad_();
  Tensor h = square(x), a = exp(h), b = mul(h, a);
  backward(sum(add(b, mul(a, h))));
  for (size_t i = 0; i < 2; i++) {
    double v = x.values()[i], e = std::exp(v * v);
    EXPECT_NEAR(x.grad().values()[i], 2 * (2 * v * e + v * v * 2 * v * e), 1e-9 * e);
  }
}

TEST(Tape, NothingIsRecordedWithoutNeed) {
  Tensor x = random({4}, 1).requires_grad_();
  EXPECT_FALSE(relu(x.detach()).requires_grad());
  {
    NoGrad no_grad;
    EXPECT_FALSE(relu(x).requires_grad());
    WithGrad with_grad;
    EXPECT_TRUE(relu(x).requires_grad());
  }
  EXPECT_TRUE(relu(x).requires_grad());
  EXPECT_FALSE(x.grad());
}

TEST(Tape, TheGraphIsWalkedOnce) {
  Tensor x = random({4}, 1).requires_grad_(), y = sum(relu(x));
  backward(y);
  EXPECT_MESSAGE(backward(y), "backward called twice");
  EXPECT_MESSAGE(backward(sum(relu(x)), zeros({2})), "backward: seed (2)");
}

// Activations that no backward reads are freed at once, and all of them by backward itself.
TEST(Tape, ActivationsAreNotHeldByTheGraph) {
  StepScope step;
  Tensor x = zeros({1024}).requires_grad_();
  size_t before = Arena::step({}).stats().live;
  Tensor y = x;
  for (int i = 0; i < 10; i++) y = add_scalar(y, 1);
  EXPECT_EQ(Arena::step({}).stats().live, before + 4096);
  Tensor z = sum(exp(y));
  y = Tensor();
  backward(z);
  EXPECT_EQ(Arena::step({}).stats().live, before + 4096 + 4);  // x's gradient and z
}

TEST(Tape, CheckpointGivesTheSameBits) {
  auto f = [](const std::vector<Tensor>& v) {
    Tensor h = dropout(gelu(matmul(v[0], v[1], false, true)), 0.5, RngKey{1, 2, 3});
    return add(h, v[2]);
  };
  Tensor x = random({8, 16}, 1).requires_grad_(), w = random({32, 16}, 2).requires_grad_();
  Tensor frozen = random({32}, 3);
  auto gradients = [&](auto run) {
    x.zero_grad();
    w.zero_grad();
    Tensor loss = sum(square(run()));
    backward(loss);
    return std::vector<Tensor>{loss.detach(), x.grad(), w.grad()};
  };
  auto plain = gradients([&] { return f({x, w, frozen}); });
  auto recomputed = gradients([&] { return checkpoint(f, {x, w, frozen}); });
  for (size_t i = 0; i < 3; i++) EXPECT_TRUE(same_bits(plain[i], recomputed[i])) << i;
  // Parameters that f captures get their gradient even where no input asks for one.
  w.zero_grad();
  backward(sum(checkpoint([&](auto& v) { return matmul(v[0], w, false, true); }, {x.detach()})));
  EXPECT_TRUE(w.grad());
  // Nested, and with an input that f does not use.
  auto nested = gradients([&] {
    return checkpoint(
        [&](auto& v) {
          return checkpoint(f, {v[0], v[1], v[2]});
        },
        {x, w, frozen, random({3}, 4).requires_grad_()});
  });
  for (size_t i = 0; i < 3; i++) EXPECT_TRUE(same_bits(plain[i], nested[i])) << i;
}

TEST(Tape, AnomalyNamesTheFirstOpThatIsNotFinite) {
  auto error = [](const std::function<void()>& f) {
    try {
      f();
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  Tensor x = from(std::vector<float>{1, 0, 4}, {3}).requires_grad_();
  auto forward = [&] { return scale(log(x), 2); };  // -inf at element 1
  EXPECT_EQ(error(forward), "");
  {
    Anomaly anomaly;
    EXPECT_NE(error(forward).find("anomaly: log: output (3) is -inf at element 1"),
              std::string::npos)
        << error(forward);
    NoGrad no_grad;
    EXPECT_NE(error(forward), "");
  }
  EXPECT_EQ(error(forward), "");
  // A finite value with a gradient that is not.
  auto root = [&] {
    Tensor leaf = from(std::vector<float>{1, 2}, {2}).requires_grad_();
    Tensor y = record("bad_gradient", leaf.clone(), {leaf},
                      [](Backward& b) { b[0].give(full({2}, NAN)); });
    backward(sum(y));
  };
  EXPECT_EQ(error(root), "");
  Anomaly anomaly;
  EXPECT_NE(error(root).find("bad_gradient: gradient of input 0 (2) is nan at element 0"),
            std::string::npos)
      << error(root);
}

TEST(Tape, LongChains) {
  Tensor x = random({4}, 1).requires_grad_();
  {
    Tensor y = x;
    for (int i = 0; i < 200000; i++) y = add_scalar(y, 0);
    backward(y, full({4}, 1));
    EXPECT_EQ(x.grad().values(), (std::vector<double>{1, 1, 1, 1}));
  }
  {
    Tensor y = x;  // freed without a backward
    for (int i = 0; i < 200000; i++) y = add_scalar(y, 0);
  }
  {
    Tensor y = x;  // freed after a backward that stops in the middle
    for (int i = 0; i < 100000; i++) y = add_scalar(y, 0);
    y = record("stops", y.clone(), {y}, [](Backward& b) { b[0].none(); });
    for (int i = 0; i < 100000; i++) y = add_scalar(y, 0);
    backward(y, full({4}, 1));
  }
}

TEST(Tape, ImageLayoutsMeetTheirGradients) {
  Tensor x = random({2, 16, 3, 3}, 1), leaf = x.to(Layout::nhwc).requires_grad_();
  Tensor y = to_strided(relu(leaf)), r = random({2, 16, 3, 3}, 2);
  backward(mul(y, r), full(y.shape(), 1));
  std::vector<double> g = leaf.grad().values(), v = x.values(), s = r.values();
  for (size_t i = 0; i < g.size(); i++) ASSERT_EQ(g[i], v[i] > 0 ? s[i] : 0);
  // Two layouts of one value: the gradients are added in the layout of the value.
  Tensor image = relu(leaf.detach().requires_grad_());
  Tensor sum_of_both = add(to_strided(image), to_strided(scale(image, 2)));
  backward(sum_of_both, full(sum_of_both.shape(), 1));
  Tensor mixed = add(leaf.detach(), x);  // different layouts meet in a strided result
  EXPECT_EQ(mixed.values(), scale(x, 2).values());
}

}  // namespace
}  // namespace pupil
