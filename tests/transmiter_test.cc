// TransMiter and its baselines against the values, invariances and bad inputs of the paper and the
// specification (T1 to T23), and the whole pipeline on stored features.
#include "methods/transmiter.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "data/clean_name.h"
#include "data/python_random.h"
#include "methods/auxiliary_classes.h"
#include "methods/eft.h"
#include "methods/linear_probe.h"
#include "methods/procrustes.h"
#include "methods/zero_shot.h"
#include "program.h"
#include "tools/transmiter_job.h"

namespace pupil::methods {
namespace {

using Numbers = std::vector<double>;
using test::expect_refused;

Tensor gaussian(int64_t n, int64_t d, uint64_t seed, double scale = 1) {
  Numbers values(size_t(n * d));
  for (size_t i = 0; i < values.size(); i++) values[i] = scale * normal({seed, 0, 0}, int64_t(i));
  return from(std::span<const double>(values), {n, d});
}

Tensor array(const Numbers& values, const Shape& shape) {
  return from(std::span<const double>(values), shape);
}

Tensor eye(int64_t n) {
  Tensor t = zeros({n, n}, DType::f64);
  for (int64_t i = 0; i < n; i++) t.data<double>()[i * n + i] = 1;
  return t;
}

double distance(const Tensor& a, const Tensor& b) {
  return std::sqrt(sum(square(sub(a, b))).item());
}
double norm(const Tensor& a) { return std::sqrt(sum(square(a)).item()); }

void expect_values(const Tensor& got, const Numbers& want, double atol) {
  Numbers have = got.values();
  ASSERT_EQ(have.size(), want.size());
  for (size_t i = 0; i < want.size(); i++) EXPECT_NEAR(have[i], want[i], atol) << "element " << i;
}

Tensor solve(const Tensor& target, const Tensor& source, ProcrustesOptions o) {
  Procrustes problem(target.dim(1));
  problem.add(target, source);
  return problem.solve(o);
}

ProcrustesOptions with_beta(double beta) {
  ProcrustesOptions o;
  o.beta = beta;
  return o;
}

TEST(ProcrustesRotation, RecoversRotationsAndReflections) {  // T1
  Tensor target = gaussian(200, 32, 1), q = haar(gaussian(32, 32, 2));
  Tensor mirror = q.clone();
  for (int64_t i = 0; i < 32; i++) mirror.data<double>()[i * 32] *= -1;
  for (const Tensor& wanted : {q, mirror})
    EXPECT_LT(distance(solve(target, matmul(target, wanted), with_beta(0)), wanted), 1e-10);
  ProcrustesOptions rotation = with_beta(0);
  rotation.rotation = true;
  Tensor r = solve(target, matmul(target, mirror), rotation);
  EXPECT_LT(distance(matmul(r, r, true), eye(32)), 1e-12);
  EXPECT_GT(distance(r, mirror), 1);
}

TEST(ProcrustesRotation, PullsToTheIdentity) {  // T2, T5, T6
  Tensor few = gaussian(10, 32, 3);
  EXPECT_LT(distance(solve(few, few, with_beta(1e-6)), eye(32)), 1e-6);
  EXPECT_LT(distance(solve(few, few, with_beta(500)), eye(32)), 1e-12);
  Tensor target = gaussian(200, 32, 1), q = haar(gaussian(32, 32, 2)), source = matmul(target, q);
  double before = 0;
  for (double beta : {1.0, 10.0, 100.0, 1000.0, 1e6}) {
    double off = distance(solve(target, source, with_beta(beta)), q);
    EXPECT_GT(off, before) << beta;
    before = off;
  }
  EXPECT_LT(distance(solve(target, source, with_beta(1e8)), eye(32)), 1e-2);
  // A direction that no row has stays.
  Tensor a = cat({gaussian(6, 8, 4), zeros({6, 2}, DType::f64)}, 1),
         b = cat({gaussian(6, 8, 5), zeros({6, 2}, DType::f64)}, 1);
  Tensor r = solve(a, b, with_beta(7));
  EXPECT_LT(distance(slice(r, 1, 8, 10), slice(eye(10), 1, 8, 10)), 1e-12);
}

TEST(ProcrustesRotation, AngleOfTwoDimensions) {  // T3
  double k = 4, theta = 2 * M_PI / 3, c = std::cos(theta), s = std::sin(theta);
  Tensor target = scale(eye(2), std::sqrt(k));
  Tensor source = scale(array({c, -s, s, c}, {2, 2}), std::sqrt(k));
  for (auto [beta, degrees] : {std::pair{2.0, 90.0}, {4.0, 60.0}}) {
    double angle = degrees * M_PI / 180;
    expect_values(solve(target, source, with_beta(beta)),
                  {std::cos(angle), -std::sin(angle), std::sin(angle), std::cos(angle)}, 1e-12);
  }
}

TEST(ProcrustesRotation, IsTheMinimum) {  // T4
  int64_t d = 12;
  double beta = 3;
  Tensor t = gaussian(40, d, 6), s = gaussian(40, d, 7), r = solve(t, s, with_beta(beta));
  auto objective = [&](const Tensor& x) {
    return std::pow(distance(matmul(t, x), s), 2) + beta * std::pow(distance(x, eye(d)), 2);
  };
  Tensor p = add(matmul(t, s, true), scale(eye(d), beta));
  double sigma = sum(svd(p).s).item(), squares = std::pow(norm(t), 2) + std::pow(norm(s), 2);
  EXPECT_NEAR(objective(r), squares + 2 * beta * double(d) - 2 * sigma, 1e-9 * squares);
  EXPECT_LT(distance(matmul(r, r, true), eye(d)), 1e-12);
  Tensor symmetric = matmul(r, p, true);
  EXPECT_LT(distance(symmetric, permute(symmetric, {1, 0})), 1e-10);
  EXPECT_LT(distance(r, polar(p).u), 1e-11);  // T9
  for (uint64_t k = 0; k < 5; k++) {
    Tensor g = gaussian(d, d, 20 + k, 1e-3);
    EXPECT_GE(objective(matmul(r, expm(sub(g, permute(g, {1, 0}))))), objective(r));
  }
}

TEST(ProcrustesRotation, DoesNotDependOnBlocksAndOrder) {
  Tensor t = gaussian(2500, 9, 8), s = gaussian(2500, 9, 9);
  Tensor whole = solve(t, s, with_beta(5));
  Procrustes pieces(9);
  for (int64_t begin : {1100, 0, 37, 2400}) {
    int64_t end = begin == 1100 ? 2400 : begin == 0 ? 37 : begin == 37 ? 1100 : 2500;
    pieces.add(slice(t, 0, begin, end), slice(s, 0, begin, end));
  }
  EXPECT_EQ(pieces.rows(), 2500);
  EXPECT_LT(distance(pieces.solve(with_beta(5)), whole), 1e-10);
}

TEST(ProcrustesRotation, TruncatesAndRefuses) {
  Tensor t = gaussian(30, 5, 10), s = gaussian(30, 5, 11);
  ProcrustesOptions o = with_beta(0);
  o.truncate_ratio = 0.999;  // only the largest singular triplet stays
  EXPECT_NEAR(norm(solve(t, s, o)), 1, 1e-10);
  EXPECT_THROW(Procrustes(5).solve(), Error);
  EXPECT_THROW(solve(t, s, with_beta(-1)), Error);
  EXPECT_THROW(Procrustes(4).add(t, s), Error);
}

struct Small {  // an adapter whose MLP does something
  nn::Store store{3, DType::f64};
  Adapter adapter;
  explicit Small(AdapterOptions o) : adapter(nn::Scope(store), o) {
    adapter.draw_base();
    uint64_t k = 0;
    for (nn::Param& p : store.params())
      if (p.name.find("layers.0.4.") != std::string::npos || p.name.ends_with("original"))
        copy_into(p.value, view(gaussian(1, p.value.numel(), 40 + k++, 0.3), p.value.shape()));
  }
};

AdapterOptions small_options(int64_t m, int64_t d, Basis basis = Basis::expm) {
  AdapterOptions o;
  o.logits = m;
  o.latent = d;
  o.hidden = 2 * d;
  o.basis = basis;
  return o;
}

// The same rows in the standardised form that the basis change sees.
Tensor latents(const Tensor& z, const Tensor& w) {
  Tensor average = mean(z, {1}, true), centred = sub(z, average);
  Tensor deviation = sqrt(scale(sum(square(centred), {1}, true), 1 / double(z.dim(1) - 1)));
  return matmul(div(centred, add_scalar(deviation, 1e-6)), w, false, true);
}

TEST(TransmiterTransfer, LatentsAreNotNeeded) {  // T7, T8: also for D > M
  for (int64_t d : {8, 13}) {
    NoGrad no_grad;
    Small small(small_options(8, d));
    Tensor weak = gaussian(40, 8, 12, 3), strong = gaussian(40, 8, 13, 2);
    Tensor w = small.adapter.basis();
    Tensor r = logit_rotation(weak, strong, with_beta(20));
    Tensor by_latents = solve(latents(strong, w), latents(weak, w), with_beta(20));
    Tensor turned = matmul(w, r, false, true);
    EXPECT_LT(distance(matmul(by_latents, w, true), turned), 1e-10) << d;
    EXPECT_LT(distance(matmul(turned, turned, true), eye(8)), 1e-12);
    expect_values(matmul(r, full({8, 1}, 1, DType::f64)), Numbers(8, 1.0), 1e-12);  // R_d 1 = 1
    nn::Store free_store(0, DType::f64), tied_store(0, DType::f64);
    Adapter free = small.adapter.rotated(nn::Scope(free_store), r, Basis::free);
    Adapter tied = small.adapter.rotated(nn::Scope(tied_store), r, Basis::expm);
    EXPECT_LT(distance(free.basis(), turned), 1e-12);
    EXPECT_LT(distance(tied.basis(), turned), 1e-12);
    EXPECT_LT(distance(free(strong), tied(strong)), 1e-10);
    Tensor base = tied_store.find("network.0.in_proj.parametrizations.weight.0.base")->value;
    EXPECT_LT(distance(matmul(base, base, true), eye(d)), 1e-12);
  }
}

// T13: strong logits are weak ones in another basis, in which the transferred adapter does the
// same.
TEST(TransmiterTransfer, PlantedRotation) {
  NoGrad no_grad;
  int64_t m = 20, n = 200;
  Small small(small_options(m, m));
  Tensor x = latents(gaussian(n, m, 14), eye(m));
  // Q with Q 1 = 1: a rotation of the directions orthogonal to the ones.
  Tensor first = cat({full({m, 1}, 1, DType::f64), gaussian(m, m - 1, 15)}, 1);
  Tensor frame = qr(first).q, inner = zeros({m, m}, DType::f64);
  Tensor turn = haar(gaussian(m - 1, m - 1, 16));
  inner.data<double>()[0] = 1;
  for (int64_t i = 1; i < m; i++)
    for (int64_t j = 1; j < m; j++)
      inner.data<double>()[i * m + j] = turn.data<double>()[(i - 1) * (m - 1) + j - 1];
  Tensor q = matmul(matmul(frame, inner), frame, false, true);
  Tensor strong = matmul(x, q, false, true);
  Tensor wanted = matmul(small.adapter(x), q, false, true);
  auto error = [&](double beta) {
    nn::Store store(0, DType::f64);
    Tensor r = logit_rotation(x, strong, with_beta(beta));
    Tensor got = small.adapter.rotated(nn::Scope(store), r, Basis::free)(strong);
    return distance(got, wanted) / norm(wanted);
  };
  EXPECT_LT(error(1e-12), 1e-9);
  double fine = error(1e-3), rough = error(1);
  EXPECT_LT(fine, 1e-4);
  EXPECT_NEAR(rough / fine, 1000, 100);  // linear in beta
  EXPECT_GT(distance(small.adapter(strong), wanted) / norm(wanted), 0.05);
}

TEST(TransmiterAdapter, IsTheIdentityAtFirst) {  // T10, and constant rows
  NoGrad no_grad;
  for (Basis basis : {Basis::expm, Basis::cayley, Basis::frozen}) {
    nn::Store store(5);
    Adapter adapter(nn::Scope(store), small_options(12, 12, basis));
    adapter.draw_base();
    Tensor z = gaussian(30, 12, 17, 3).to(DType::f32);
    EXPECT_LT(distance(adapter(z), z), 1e-4);
    Tensor constant = full({2, 12}, 7.25);
    expect_values(adapter(constant), Numbers(24, 7.25), 1e-5);
  }
}

TEST(TransmiterAdapter, FollowsShiftAndScale) {  // T12
  NoGrad no_grad;
  Small small(small_options(9, 11, Basis::cayley));
  Tensor z = gaussian(6, 9, 18, 4);
  Tensor moved = small.adapter(add_scalar(scale(z, 2.5), -3));
  Tensor wanted = add_scalar(scale(small.adapter(z), 2.5), -3);
  EXPECT_LT(distance(moved, wanted) / norm(wanted), 1e-5);
}

TEST(TransmiterAdapter, Counts) {  // T16
  nn::Store store = nn::Store::blueprint();
  Adapter adapter{nn::Scope(store), AdapterOptions()};
  EXPECT_EQ(store.count(), 9444352);
  nn::Store frozen = nn::Store::blueprint();
  EXPECT_THROW(Adapter(nn::Scope(frozen), small_options(8, 7)), Error);
}

TEST(TransmiterAdapter, GoldenT16c) {
  AdapterOptions o = small_options(3, 4, Basis::free);
  o.hidden = 2;
  nn::Store store(0, DType::f64);
  Adapter adapter{nn::Scope(store), o};
  double c = std::cos(0.3), s = std::sin(0.3);
  auto set = [&](const std::string& name, const Numbers& values) {
    Tensor p = store.find("network.0." + name)->value;
    copy_into(p, array(values, p.shape()));
  };
  Numbers w{c, -s, 0, s, c, 0, 0, 0, 1, 0, 0, 0};
  set("in_proj.weight", w);
  set("transfer_out_proj.weight", w);
  set("mlp_layers.0.1.weight", {1, 0, 0, 1, 0, 1, -1, 0});
  set("mlp_layers.0.1.bias", {0.1, -0.2});
  set("mlp_layers.0.4.weight", {0.5, 0, 0, 0.5, 0.25, 0.25, -0.5, 1});
  set("mlp_layers.0.4.bias", {0, 0.1, 0, -0.1});
  Tensor z = array({20, 22, 27, 25, 24.5, 18}, {2, 3}), tuned = array({21, 22, 26, 24}, {2, 2});
  Tensor out = adapter(z);
  expect_values(out,
                {19.807475502880, 22.407188510441, 26.833645241387, 27.583956499180,
                 28.951255116707, 20.889330425799},
                1e-10);
  Tensor loss = extraction_loss(out, tuned);
  EXPECT_NEAR(loss.item(), 0.373951768800, 1e-11);
  backward(loss);
  auto gradient = [&](const std::string& name) {
    return store.find("network.0." + name)->value.grad();
  };
  expect_values(add(gradient("in_proj.weight"), gradient("transfer_out_proj.weight")),
                {-1.371469473595, -0.149312743609, 1.520782217203, -0.802080579273, 2.022392789733,
                 -1.220312210460, 0.378211017230, -0.175720080374, -0.202490936856, -1.716542097344,
                 1.326155970962, 0.390386126381},
                1e-10);
  expect_values(gradient("mlp_layers.0.1.bias"), {-0.476538399413, 0.261980401063}, 1e-10);
  expect_values(gradient("mlp_layers.0.4.bias"), {-1.007680276921, 0.531542787011, 0, 0}, 1e-10);
  expect_values(gradient("mlp_layers.0.0.weight"),
                {-0.313871276889, 0.253564198252, 0.427508319802, -0.002265517990}, 1e-10);
}

TEST(TransmiterAdapter, StaysOrthogonalInFloat) {  // T14, short
  nn::Store store(1);
  Adapter adapter(nn::Scope(store), small_options(24, 24));
  adapter.draw_base();
  Tensor z = gaussian(64, 24, 19, 3).to(DType::f32), tuned = gaussian(64, 5, 20, 3).to(DType::f32);
  ExtractionOptions o;
  o.epochs = 150;
  o.lr = 1e-2;
  Curve curve = extract(store, adapter, z, tuned, o, shuffled_batches(64, 32, 1));
  EXPECT_EQ(curve.loss.size(), 300u);
  EXPECT_LT(curve.loss.back(), 0.7 * curve.loss.front());
  NoGrad no_grad;
  Tensor w = adapter.basis().to(DType::f64);
  EXPECT_LT(distance(matmul(w, w, true), eye(24)), 1e-4);
  Tensor base = store.find("network.0.in_proj.parametrizations.weight.0.base")->value;
  EXPECT_GT(distance(w, base.to(DType::f64)), 0.1);
}

using LossFunction = Tensor (*)(const Tensor&, const Tensor&, const ExtractionLossOptions&);
class ExtractionLoss : public testing::TestWithParam<LossFunction> {};
INSTANTIATE_TEST_SUITE_P(Both, ExtractionLoss,
                         testing::Values(extraction_loss, extraction_loss_plain),
                         [](auto& info) { return info.index ? "plain" : "fused"; });

TEST_P(ExtractionLoss, GoldenT17) {
  Tensor pred = array({1, 1, 2}, {1, 3}).requires_grad_();
  Tensor loss = GetParam()(pred, array({1, 2, 3}, {1, 3}), {});
  EXPECT_NEAR(loss.item(), 0.121786968838, 1e-12);
  backward(loss);
  expect_values(pred.grad(), {0.098032658820, 0.047315564895, -0.145348223716}, 1e-12);
}

TEST_P(ExtractionLoss, AuxiliaryColumnsAndOptimum) {  // T18, T20
  Tensor pred = gaussian(4, 9, 21, 2).requires_grad_();
  backward(GetParam()(pred, gaussian(4, 3, 22, 2), {}));
  Numbers g = pred.grad().values();
  for (size_t i = 0; i < g.size(); i++) EXPECT_EQ(g[i] == 0, i % 9 >= 3);
  Tensor teacher = gaussian(4, 3, 22, 2);
  EXPECT_NEAR(GetParam()(scale(teacher, 2), teacher, {}).item(), 0, 1e-15);
  EXPECT_GT(GetParam()(teacher, teacher, {}).item(), 1e-3);
  Tensor huge = array({1e4, -1e4, 0}, {1, 3}).to(DType::f32).requires_grad_();
  Tensor loss = GetParam()(huge, array({-1e3, 1e3, 0}, {1, 3}).to(DType::f32), {});
  EXPECT_TRUE(std::isfinite(loss.item()));
  Tensor broken = teacher.clone();
  broken.data<double>()[1] = NAN;
  EXPECT_THROW(GetParam()(teacher, broken, {}), Error);
}

TEST(TransmiterTraining, Schedule) {  // T19
  for (auto [step, lr] : std::map<int64_t, double>{{0, 3.921568627451e-5},
                                                   {24, 9.803921568627e-4},
                                                   {25, 1.019607843137e-3},
                                                   {26, 9.999973722030e-4},
                                                   {255, 5.412896727362e-4},
                                                   {509, 1.051116054945e-8}})
    EXPECT_NEAR(1e-3 * warmup_cosine(step, 25.5, 510), lr, 1e-15) << step;
}

TEST(TransmiterTraining, BatchesAndNoise) {
  Batches batches = shuffled_batches(10, 4, 1);
  std::vector<Tensor> first = batches(0), again = batches(0), next = batches(1);
  ASSERT_EQ(first.size(), 3u);
  EXPECT_EQ(first[2].dim(0), 2);
  Numbers order = cat(first, 0).values();
  EXPECT_EQ(order, cat(again, 0).values());
  EXPECT_NE(order, cat(next, 0).values());
  std::sort(order.begin(), order.end());
  EXPECT_EQ(order, (Numbers{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
  Tensor z = gaussian(3, 5, 23), eps = gaussian(3, 5, 24);
  EXPECT_EQ(logit_noise(z, eps, 0.5).values(), z.values());
  EXPECT_NE(logit_noise(z, eps, 0.51).values(), z.values());
}

TEST(TransmiterTraining, SameSeedSameBits) {
  auto trained = [](uint64_t seed) {
    nn::Store store(seed);
    Adapter adapter(nn::Scope(store), small_options(10, 10));
    adapter.draw_base();
    ExtractionOptions o;
    o.epochs = 3;
    o.seed = seed;
    extract(store, adapter, gaussian(30, 10, 25, 3).to(DType::f32),
            gaussian(30, 4, 26, 3).to(DType::f32), o, shuffled_batches(30, 8, seed));
    NoGrad no_grad;
    return adapter(gaussian(5, 10, 27).to(DType::f32)).values();
  };
  EXPECT_EQ(trained(1), trained(1));
  EXPECT_NE(trained(1), trained(2));
}

TEST(Eft, GoldenT21b) {
  Tensor strong = array({1, 2, 3}, {1, 3}), tuned = array({2, 0, 1}, {1, 3}),
         weak = array({1, 1, 0}, {1, 3});
  auto probabilities = [&](LogitMode mode, double alpha, bool logarithm = true) {
    return softmax(eft_logits(weak, tuned, strong, mode, alpha, logarithm));
  };
  expect_values(probabilities(LogitMode::proxy, 1),
                {0.114195199385, 0.042010066134, 0.843794734481}, 1e-12);
  expect_values(probabilities(LogitMode::proxy, 0.5),
                {0.106506978919, 0.106506978919, 0.786986042162}, 1e-12);
  expect_values(probabilities(LogitMode::base_change, 0.5),
                {0.348207427884, 0.077695579149, 0.574096992968}, 1e-12);
  expect_values(probabilities(LogitMode::ensemble, 0.5),
                {0.307195885718, 0.186323723226, 0.506480391056}, 1e-12);
  expect_values(probabilities(LogitMode::proxy, 1, false),
                probabilities(LogitMode::proxy, 1).values(), 1e-12);
  expect_values(softmax(eft_logits(weak, weak, strong)), softmax(strong).values(), 1e-12);
  expect_values(softmax(eft_logits(weak, tuned, weak)), softmax(tuned).values(), 1e-12);
  expect_refused([] { logit_mode_named("proxi"); }, {"proxy"});
}

TEST(Eft, DynamicFusion) {
  Tensor strong = array({1, .2, -.5, .3}, {1, 4}), weak = array({.5, .4, -.2, .1}, {1, 4});
  Tensor tuned = array({2, .3, -.8, -.4}, {1, 1, 4});
  DynamicFusion r = dynamic_fusion(weak, tuned, strong);
  EXPECT_NEAR(r.alpha[0], 1.050, 1e-3);
  EXPECT_NEAR(r.objective[0], 0.0022769215, 5e-8);  // on a grid of 0.001
  EXPECT_LE(r.objective[0], 0.0022769215);
  // An expert that changed nothing leaves the strong model as it is.
  Tensor same = view(weak, {1, 1, 4});
  expect_values(dynamic_fusion(weak, same, strong).logits, strong.values(), 0);
  DynamicFusion two = dynamic_fusion(weak, cat({same, tuned}, 0), strong);
  EXPECT_EQ(two.expert.size(), 1u);
  EXPECT_THROW(dynamic_fusion(weak, weak, strong), Error);
  Tensor rows = cat({tuned, same}, 1);  // of one expert, two images
  DynamicFusion both = dynamic_fusion(cat({weak, weak}, 0), rows, cat({strong, weak}, 0));
  EXPECT_EQ(both.alpha[0], r.alpha[0]);
  expect_values(slice(both.logits, 0, 0, 1), r.logits.values(), 0);
  expect_values(slice(both.logits, 0, 1, 2), weak.values(), 0);
  // A flat strong model needs little of what moved a sure weak one; a sure one more than there is.
  Tensor little =
      dynamic_fusion(array({6, .4, -.2, .1}, {1, 4}), array({5, .9, -.8, -.4}, {1, 1, 4}),
                     array({0, .2, -.5, .3}, {1, 4}))
          .logits;
  EXPECT_NEAR(little.values()[0], -0.243, 1e-3);  // strong + alpha (5 - 6); alpha from a fine grid
  EXPECT_EQ(
      dynamic_fusion(weak, array({1.5, .3, -.8, -.4}, {1, 1, 4}), array({9, .2, -.5, .3}, {1, 4}))
          .alpha[0],
      2);
}

TEST(BaseToNovel, MaskedAndHarmonic) {  // T22
  EXPECT_NEAR(*harmonic_mean(85.27, 81.07), 83.11697607, 1e-8);
  EXPECT_EQ(*harmonic_mean(0.0, 0.0), 0);
  // The novel class 2 has the largest logit of every row; base rows must not see it.
  Tensor z = array({1, 0, 9, 0, 1, 9, 5, 6, 9, 3, 2, 1}, {4, 3});
  std::vector<int64_t> base{0, 1}, novel{2}, labels{0, 1, 0, 2};
  BaseNovel r = base_to_novel(z, from(labels, {4}), base, novel);
  EXPECT_NEAR(*r.base, 200.0 / 3, 1e-12);
  EXPECT_EQ(*r.novel, 100);
  BaseNovel none =
      base_to_novel(slice(z, 0, 0, 3), from(std::vector<int64_t>{0, 1, 0}, {3}), base, novel);
  EXPECT_FALSE(none.novel);
  EXPECT_FALSE(none.harmonic_mean);
}

TEST(PythonRandom, KnownAnswers) {  // of CPython 3.11
  data::PythonRandom one(1), large((uint64_t(1) << 40) + 5), seven(7);
  for (uint32_t want : {577090037u, 2444712010u, 3639700191u, 3445702192u})
    EXPECT_EQ(one.next(), want);
  for (uint32_t want : {2166296868u, 2220160828u, 1153647273u}) EXPECT_EQ(large.next(), want);
  using Rows = std::vector<int64_t>;
  EXPECT_EQ(seven.sample(10, 5), (Rows{5, 2, 6, 9, 0}));
  EXPECT_EQ(seven.sample(1000, 8), (Rows{74, 840, 548, 96, 374, 596, 59, 931}));
  EXPECT_EQ(seven.sample(40, 6), (Rows{32, 13, 2, 5, 27, 26}));
  Rows labels{4, 4, 9, 4, 9, 1}, shots = data::few_shot(labels, 2, 1);
  ASSERT_EQ(shots.size(), 5u);
  EXPECT_EQ(labels[size_t(shots[0])], 4);
  EXPECT_EQ(labels[size_t(shots[3])], 9);
  EXPECT_EQ(shots[4], 5);
}

// The 16-shot split of seed 1 that Tip-Adapter and CoOp use.
TEST(PythonRandom, PublishedFewShotSplit) {
  PUPIL_NEEDS_SHARED();
  std::string folder = test::shared_folder() + "/data/clip/caltech101/";
  auto split = nlohmann::json::parse(test::read_text(folder + "split_zhou_Caltech101.json"));
  std::vector<int64_t> labels;
  for (auto& entry : split["train"]) labels.push_back(entry[1]);
  std::vector<int64_t> chosen = data::few_shot(labels, 16, 1);
  ASSERT_EQ(chosen.size(), 1600u);
  std::istringstream lines(test::read_text(folder + "few16_files.tsv"));
  size_t k = 0;
  for (std::string line; std::getline(lines, line);) {
    if (!std::isdigit(line[0])) continue;
    ASSERT_LT(k, chosen.size());
    std::string path = split["train"][size_t(chosen[k])][0];
    EXPECT_EQ(line, concat(k, "\t", labels[size_t(chosen[k])], "\t", path));
    k++;
  }
  EXPECT_EQ(k, 1600u);
}

TEST(LinearProbe, ChoosesC) {
  int calls = 0;
  double c = choose_c([&](double c) {
    calls++;
    return -std::fabs(std::log10(c) - 1.3);
  });
  EXPECT_NEAR(std::log10(c), 1.3, 1.0 / 64);
  EXPECT_LE(calls, 7 + 2 + 7);
  c = choose_c([](double c) { return -std::fabs(std::log10(c) + 2.71); });
  EXPECT_NEAR(std::log10(c), -2.703125, 1e-12);  // after 8 steps; 7: -2.71875, 9: -2.7109375
  EXPECT_NEAR(choose_c([](double) { return 1; }), 1e5, 1);  // equal: the larger, then the smaller
}

struct Pool {
  std::vector<std::string> words, task{"cat", "owl"};
  AuxiliaryRequest request;
  Pool() {
    for (char c = 'a'; c <= 'x'; c++) words.push_back(std::string("w") + c);
    words.insert(words.begin() + 3, "cat");
    request.task_embeddings = gaussian(2, 6, 30);
    request.word_embeddings = gaussian(int64_t(words.size()), 6, 31);
    request.features = gaussian(15, 6, 32);
    request.count = 5;
  }
  std::vector<int64_t> choose(AuxiliaryStrategy strategy) {
    request.strategy = strategy;
    return auxiliary_classes(words, task, request);
  }
  // largest cosine with a task class
  double similarity(int64_t i) const {
    Tensor a = normalize(request.task_embeddings), b = normalize(request.word_embeddings);
    Numbers s = matmul(slice(b, 0, i, i + 1), a, false, true).values();
    return *std::max_element(s.begin(), s.end());
  }
};

TEST(AuxiliaryClasses, EveryStrategy) {
  Pool pool;
  for (auto strategy :
       {AuxiliaryStrategy::random, AuxiliaryStrategy::hard_neg, AuxiliaryStrategy::fps,
        AuxiliaryStrategy::easy_fps, AuxiliaryStrategy::mix_fps, AuxiliaryStrategy::top_std,
        AuxiliaryStrategy::std_fps}) {
    std::vector<int64_t> chosen = pool.choose(strategy);
    EXPECT_EQ(chosen.size(), 5u);
    std::set<int64_t> unique(chosen.begin(), chosen.end());
    EXPECT_EQ(unique.size(), 5u) << int(strategy);
    EXPECT_FALSE(unique.count(3)) << "a task class";
  }
  std::vector<double> similar;
  for (int64_t i = 0; i < 25; i++)
    if (i != 3) similar.push_back(pool.similarity(i));
  std::sort(similar.begin(), similar.end());
  std::vector<int64_t> hard = pool.choose(AuxiliaryStrategy::hard_neg);
  for (size_t k = 0; k < 5; k++)
    EXPECT_NEAR(pool.similarity(hard[k]), similar[similar.size() - 1 - k], 1e-12);
  EXPECT_NEAR(pool.similarity(pool.choose(AuxiliaryStrategy::fps)[0]), similar[0], 1e-12);
  for (int64_t i : pool.choose(AuxiliaryStrategy::easy_fps))
    EXPECT_GE(pool.similarity(i), similar[18] - 1e-12);  // the top 6 of 24
  std::vector<int64_t> mixed = pool.choose(AuxiliaryStrategy::mix_fps);
  for (size_t k = 0; k < 5; k++) EXPECT_EQ(pool.similarity(mixed[k]) >= similar[18] - 1e-12, k < 2);
  Tensor images = normalize(pool.request.features);
  auto spread = [&](int64_t i) {
    Numbers z =
        matmul(images, slice(pool.request.word_embeddings, 0, i, i + 1), false, true).values();
    double average = 0, squares = 0;
    for (double v : z) average += v / double(z.size());
    for (double v : z) squares += (v - average) * (v - average);
    return squares;
  };
  std::vector<int64_t> widest = pool.choose(AuxiliaryStrategy::top_std);
  for (int64_t i = 0; i < 25; i++) {
    bool chosen = std::find(widest.begin(), widest.end(), i) != widest.end();
    if (i == 3 || chosen) continue;
    EXPECT_LE(spread(i), spread(widest[4]));
  }
}

TEST(AuxiliaryClasses, BadInput) {
  Pool pool;
  pool.request.count = 25;
  expect_refused([&] { pool.choose(AuxiliaryStrategy::random); }, {"25", "24"});
  pool.request.count = 7;
  expect_refused([&] { pool.choose(AuxiliaryStrategy::easy_fps); }, {"6", "7"});
  pool.request.count = 13;
  expect_refused([&] { pool.choose(AuxiliaryStrategy::mix_fps); }, {"6", "7"});
  pool.words[5] = pool.words[6];
  expect_refused([&] { pool.choose(AuxiliaryStrategy::random); }, {"twice", pool.words[6]});
  Pool empty;
  empty.words[2] = "";
  expect_refused([&] { empty.choose(AuxiliaryStrategy::random); }, {"empty"});
  expect_refused([] { auxiliary_strategy_named("fsp"); }, {"fps"});
  Pool few;
  few.request.features = gaussian(2, 6, 32);
  EXPECT_EQ(few.choose(AuxiliaryStrategy::top_std).size(), 5u);
  few.request.features = gaussian(1, 6, 32);
  expect_refused([&] { few.choose(AuxiliaryStrategy::top_std); }, {"two"});
}

TEST(ZeroShot, Templates) {
  EXPECT_EQ(fill_template("a photo of a {}.", "maine_coon"), "a photo of a maine coon.");
  expect_refused([] { fill_template("a photo", "cat"); }, {"a photo", "{}"});
  expect_refused([] { fill_template("{} and {}", "cat"); }, {"{} and {}"});
  expect_refused([] { fill_template("a {}", ""); }, {"empty"});
}

TEST(LinearProbe, IsStationaryAndRefuses) {
  Tensor x = gaussian(40, 6, 33);
  std::vector<int64_t> y;
  for (int64_t i = 0; i < 40; i++) y.push_back(i % 3);
  for (double c : {1e-3, 1.0, 1e3}) {
    LinearProbeOptions o;
    o.c = c;
    LinearProbe probe = fit_linear_probe(x, from(y, {40}), 3, o);
    Tensor w = probe.weight.clone().requires_grad_(), b = probe.bias.clone().requires_grad_();
    Tensor loss = add(scale(sum(square(w)), 0.5),
                      scale(cross_entropy(linear(x, w, b), from(y, {40})), 40 * c));
    EXPECT_NEAR(loss.item(), probe.objective, 1e-9 * probe.objective);
    backward(loss);
    EXPECT_LT(norm(w.grad()) + norm(b.grad()), 2e-6 * c);
    EXPECT_NEAR(sum(probe.bias).item(), 0, 1e-9);
  }
  EXPECT_THROW(fit_linear_probe(x, from(y, {20, 2}), 3), Error);
  EXPECT_THROW(fit_linear_probe(slice(x, 0, 0, 39), from(y, {40}), 3), Error);
  EXPECT_THROW(fit_linear_probe(x, from(y, {40}), 0), Error);
  EXPECT_THROW(fit_linear_probe(x, from(y, {40}), 3, {.c = 0}), Error);
  for (int64_t label : {-1, 3}) {
    y[7] = label;
    try {
      fit_linear_probe(x, from(y, {40}), 3);
      ADD_FAILURE() << "label " << label;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(concat("label ", label)), std::string::npos) << e.what();
    }
  }
}

// A small made-up experiment: images are noisy copies of their class's text feature, in two spaces.
struct Scene {
  test::TemporaryFolder folder;
  std::vector<std::string> names;
  Scene() {
    int64_t classes = 6, words = 24, n = 90;
    std::string list;
    for (int64_t k = 0; k < words; k++) {
      names.push_back(concat("word", char('a' + k)));
      list += names.back() + "\n";
    }
    test::write_text(folder / "names.txt", list);
    std::vector<int64_t> labels;
    for (int64_t i = 0; i < n; i++) labels.push_back(i * 7 % classes);
    data::save_npy(folder / "labels.npy", from(labels, {n}));
    for (auto [model, width] : {std::pair{"weak", 16}, {"strong", 20}}) {
      Tensor text = gaussian(words, width, uint64_t(width)).to(DType::f32);
      data::save_npy(path(model, "text"), text);
      for (auto part : {"train", "test"}) {
        Tensor noise =
            gaussian(n, width, uint64_t(width) + (part[1] == 'r' ? 1 : 2)).to(DType::f32);
        data::save_npy(path(model, part), add(index_select(text, from(labels, {n})), noise));
      }
    }
    config =
        concat("[classes]\nnames = \"", folder / "names.txt",
               "\"\ntask = [\"worda\", \"wordb\", \"wordc\", \"wordd\", \"worde\", \"wordf\"]\n",
               "[data]\ntrain_labels = \"", folder / "labels.npy", "\"\ntest_labels = \"",
               folder / "labels.npy", "\"\n");
    for (auto model : {"weak", "strong"})
      config += concat("[", model, "]\ntext = \"", path(model, "text"), "\"\ntrain = \"",
                       path(model, "train"), "\"\ntest = \"", path(model, "test"), "\"\n");
    config += "[transmiter]\nlogits = 16\nepochs = 2\n[plus]\nepochs = 2\n[run]\nseeds = [1, 2]\n";
    write();
  }
  std::string path(const std::string& model, const std::string& what) const {
    return folder / (model + "_" + what + ".npy");
  }
  void write() const { test::write_text(folder / "job.toml", config); }
  TransmiterData open(const std::vector<std::string>& settings = {}) const {
    return open_transmiter_data(read_transmiter_config(folder / "job.toml", settings));
  }
  void refused(const std::vector<std::string>& settings,
               std::initializer_list<std::string> words) const {
    expect_refused([&] { open(settings); }, words);
  }
  std::string config;
};

TEST(TransmiterData, FitsTogether) {
  Scene scene;
  TransmiterData d = scene.open({"data.protocol=base_to_novel"});
  EXPECT_EQ(d.names.size(), 16u);
  EXPECT_EQ(d.names[1], "wordb");
  EXPECT_EQ(d.base, (std::vector<int64_t>{0, 1, 2}));
  EXPECT_EQ(d.novel, (std::vector<int64_t>{3, 4, 5}));
  EXPECT_EQ(d.weak.head.shape(), (Shape{16, 16}));
  EXPECT_EQ(d.strong.head.shape(), (Shape{16, 20}));
  EXPECT_EQ(d.sources.size(), 8u);
  // A task class counted backwards in the label file.
  TransmiterData mapped = scene.open({"data.labels=[5, 4, 3, 2, 1, 0]", "classes.auxiliary=fps",
                                      "classes.task=[\"wordf\", \"worde\", \"wordd\", \"wordc\", "
                                      "\"wordb\", \"worda\"]"});
  EXPECT_EQ(mapped.names[0], "wordf");
  EXPECT_EQ(mapped.train_labels.values()[0], 5);
}

TEST(TransmiterData, RandomVectorsInsteadOfNames) {
  Scene scene;
  TransmiterData d = scene.open({"classes.auxiliary=random_vectors"});
  ASSERT_EQ(d.names.size(), 16u);
  EXPECT_EQ(d.names[6], "direction 6");
  TransmiterData named = scene.open();
  for (auto [model, width] : {std::pair{&d.weak, 16}, {&d.strong, 20}}) {
    ASSERT_EQ(model->head.shape(), (Shape{16, width}));
    Tensor directions = slice(model->head, 0, 6, 16);
    Numbers lengths = sum(square(directions), {1}).values();
    for (double squared : lengths) EXPECT_NEAR(squared, 1e4, 1e-2);  // logit_scale 100
    EXPECT_GT(distance(slice(directions, 0, 0, 5), slice(directions, 0, 5, 10)), 100);
  }
  EXPECT_EQ(slice(d.weak.head, 0, 0, 6).values(), slice(named.weak.head, 0, 0, 6).values());
  EXPECT_EQ(scene.open({"classes.auxiliary=random_vectors"}).weak.head.values(),
            d.weak.head.values());
  EXPECT_NE(scene.open({"classes.auxiliary=random_vectors", "classes.seed=2"}).weak.head.values(),
            d.weak.head.values());
  // More of them than the pool has names.
  EXPECT_EQ(scene.open({"classes.auxiliary=random_vectors", "transmiter.logits=40"}).names.size(),
            40u);
  EXPECT_EQ(random_directions(3, 5, 1).values(), random_directions(3, 5, 1).values());
}

TEST(TransmiterData, CleansNames) {
  using data::clean_name;
  EXPECT_EQ(clean_name("Ad\u00c3\u00a9lie penguin"), "Ad\u00e9lie penguin");
  EXPECT_EQ(clean_name("Ad\u00e9lie penguin"), "Ad\u00e9lie penguin");
  EXPECT_EQ(clean_name("Ad\u00c3\u0192\u00c2\u00a9lie"), "Ad\u00e9lie");  // twice
  EXPECT_EQ(clean_name("Shepherd\u2019s pie"), "Shepherd's pie");
  EXPECT_EQ(clean_name("Shepherd\u00e2\u20ac\u2122s pie"), "Shepherd's pie");
  EXPECT_EQ(clean_name("\u2018a\u201b \u201cb\u201f"), "'a' \"b\"");
  EXPECT_EQ(clean_name("Ad\u00c3\u00a9lie\u2019s"), "Ad\u00e9lie's");
  for (const char* kept : {"", "cat", "\u00c3", "\u00abCAF\u00c9\u00bb", "\u732b",
                           "\u00c3\u00a9\u732b", "\xff\xfe", "\xc3", "a_(b)", "\u20ac", "\u2013"})
    EXPECT_EQ(clean_name(kept), kept);
  Scene scene;
  std::string names = test::read_text(scene.folder / "names.txt");
  names.replace(names.find("worda"), 5, "Ad\u00c3\u00a9lie");
  test::write_text(scene.folder / "names.txt", names);
  std::string task =
      "classes.task=[\"Ad\u00e9lie\", \"wordb\", \"wordc\", \"wordd\", \"worde\", \"wordf\"]";
  scene.refused({task}, {"Ad\u00e9lie", "did you mean"});
  EXPECT_EQ(scene.open({task, "classes.clean_names=true"}).names[0], "Ad\u00e9lie");
}

TEST(TransmiterData, BadInput) {
  Scene scene;
  scene.refused({"classes.task=[\"worda\", \"wordz\"]"}, {"wordz", "did you mean"});
  scene.refused({"classes.task=[\"worda\", \"worda\"]"}, {"worda", "twice"});
  scene.refused({"classes.templates=[\"a photo\"]"}, {"a photo", "{}"});
  scene.refused({"classes.templates=[\"a {}\", \"the {}\"]"}, {"1 templates", "2"});
  scene.refused({"transmiter.logits=25"}, {"19", "18"});
  scene.refused({"transmiter.logits=5"}, {"5", "6"});
  scene.refused({"transmiter.latent=15"}, {"15", "16"});
  scene.refused({"transmiter.temperature=0"}, {"transmiter.temperature", "above"});
  scene.refused({"transmiter.beta=[-1.0]"}, {"transmiter.beta", "at least"});
  scene.refused({"transmiter.noise=-0.1"}, {"transmiter.noise"});
  scene.refused({"transmiter.epoch=3"}, {"transmiter.epoch", "epochs"});
  scene.refused({"transmitter.epochs=3"}, {"transmitter", "transmiter"});
  scene.refused({"data.labels=[0, 1]"}, {"data.labels", "2", "6"});
  scene.refused({"data.labels=[1, 2, 3, 4, 5, 6]"}, {"label 0"});
  scene.refused({"data.protocol=base_to_novel", "data.base=[\"wordq\"]"}, {"wordq"});
  scene.refused({"data.protocol=base_to_novel",
                 "data.base=[\"worda\", \"wordb\", \"wordc\", \"wordd\", \"worde\", \"wordf\"]"},
                {"all 6"});
  scene.refused({"weak.head=" + scene.path("weak", "text")}, {"(24,16)", "(6, 16)"});
  scene.refused({"weak.train=" + scene.path("strong", "train")}, {"widths", "20", "16"});
  scene.refused({"weak.train=nowhere.npy"}, {"nowhere.npy"});
  scene.refused({"run.seeds=[1, 1]"}, {"run.seeds", "1 twice"});
  scene.refused({"linear_probe.choose_c=true"}, {"linear_probe.choose_c", "data.shots"});
}

void change(const std::string& path, const std::function<Tensor(Tensor)>& f) {
  data::save_npy(path, f(data::read_npy(path)));
}

TEST(TransmiterData, BadFeatures) {
  auto refused = [](const std::function<Tensor(Tensor)>& f,
                    std::initializer_list<std::string> words) {
    Scene scene;
    change(scene.path("strong", "train"), f);
    scene.refused({}, words);
  };
  refused([](Tensor x) { return slice(x, 0, 0, 80).contiguous(); },
          {"strong_train.npy", "80", "90", "order"});
  refused(  // another order
      [](Tensor x) {
        std::vector<int64_t> order(90);
        for (int64_t i = 0; i < 90; i++) order[size_t(i)] = (i * 37 + 11) % 90;
        return index_select(x, from(order, {90}));
      },
      {"strong_train.npy", "order", "chance"});
  auto with_row = [](double value) {
    return [=](Tensor x) {
      for (int64_t j = 0; j < x.dim(1); j++) x.data<float>()[4 * x.dim(1) + j] = float(value);
      return x;
    };
  };
  refused(with_row(NAN), {"strong_train.npy", "row 4", "NaN"});
  refused(with_row(0), {"strong_train.npy", "row 4", "zeros"});
  refused([](Tensor x) { return full(x.shape(), 1); }, {"strong_train.npy", "equal"});
  refused([](Tensor x) { return view(x, {90, 20, 1}); }, {"strong_train.npy", "(90,20,1)"});
}

TEST(TransmiterProgram, RunsSavesAndTakesItsAdapter) {
  Scene scene;
  auto r = test::run_program(
      {"transmiter", "job.toml", "--run", "out", "--set", "data.protocol=base_to_novel"},
      scene.folder);
  ASSERT_EQ(r.code, 0) << r.err;
  for (auto words : {"HM %", "TransMiter, beta 500", "TransMiter+, orthogonal", "EFT, alpha 1"})
    EXPECT_NE(r.out.find(words), std::string::npos) << r.out;
  EXPECT_NE(r.out.find(test::read_text(scene.folder / "out/table.txt")), std::string::npos);
  auto saved = data::open_safetensors(scene.folder / "out/seed2/weak.safetensors");
  EXPECT_TRUE(saved->has("network.0.in_proj.parametrizations.weight.original"));
  EXPECT_TRUE(saved->has("network.0.mlp_layers.0.4.bias"));
  auto moved = data::open_safetensors(scene.folder / "out/seed2/transferred.safetensors");
  EXPECT_TRUE(moved->has("network.0.transfer_out_proj.weight"));
  // The stored configuration and adapter give the same transfer again.
  auto again =
      test::run_program({"transmiter", "out/config.toml", "--json", "--set", "run.seeds=[2]",
                         "--set", "transmiter.adapter=out/seed2/weak.safetensors"},
                        scene.folder);
  ASSERT_EQ(again.code, 0) << again.err;
  std::string wanted;
  std::istringstream lines(test::read_text(scene.folder / "out/seed2/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    auto j = nlohmann::json::parse(line);
    EXPECT_EQ(j["seed"], 2);
    if (j["model"] == "TransMiter, beta 500") wanted = j["harmonic_mean"].dump();
  }
  bool found = false;
  for (auto& j : nlohmann::json::parse(again.out))
    if (j["model"] == "TransMiter, beta 500") {
      EXPECT_EQ(j["harmonic_mean"].dump(), wanted);
      found = true;
    }
  EXPECT_TRUE(found);

  auto bad = [&](std::vector<std::string> arguments, std::initializer_list<std::string> words) {
    arguments.insert(arguments.begin(), {"transmiter", "job.toml"});
    auto outcome = test::run_program(arguments, scene.folder);
    EXPECT_EQ(outcome.code, 2) << outcome.out << outcome.err;
    for (auto& word : words) EXPECT_NE(outcome.err.find(word), std::string::npos) << outcome.err;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    EXPECT_FALSE(std::filesystem::exists(scene.folder / "fresh"));
  };
  std::string adapter = "transmiter.adapter=out/seed1/weak.safetensors";
  bad({"--run", "fresh", "--set", adapter, "--set", "classes.seed=9"}, {"differ", "names"});
  bad({"--run", "fresh", "--set", adapter, "--set", "transmiter.latent=20"},
      {"differ", "latent 16 (here 20)"});
  bad({"--run", "fresh", "--set", "transmiter.adapter=out/seed1/transferred.safetensors"},
      {"transferred.safetensors", "weak.safetensors"});
  bad({"--run", "fresh", "--set", "weak.text=strong_text.npy"}, {"widths"});
  bad({"--run", "out"}, {"already holds a run"});
}

TEST(TransmiterProgram, ChoosesTheLinearProbeOnValidationShots) {
  Scene scene;
  auto run = [&](std::vector<std::string> settings) {
    std::vector<std::string> arguments{
        "transmiter", "job.toml",      "--set", "run.seeds=[1]",
        "--set",      "plus.modes=[]", "--set", "transmiter.epochs=0"};
    for (auto& s : settings) arguments.insert(arguments.end(), {"--set", s});
    return test::run_program(arguments, scene.folder);
  };
  auto score = [](const test::Outcome& r, const std::string& row) {
    size_t at = r.out.find("\n" + row + " ");
    EXPECT_NE(at, std::string::npos) << row << " in " << r.out;
    return std::stod(r.out.substr(at + row.size() + 2));
  };
  auto r = run({"data.shots=4", "linear_probe.choose_c=true"});
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(r.err, "");
  for (std::string model : {"weak", "strong"}) {
    std::string begin = "seed 1: " + model + ", linear probe: c ";
    size_t at = r.out.find(begin);
    ASSERT_NE(at, std::string::npos) << r.out;
    EXPECT_NE(r.out.find(" chosen on 24 validation samples", at), std::string::npos);
    std::string c =
        r.out.substr(at + begin.size(), r.out.find(' ', at + begin.size()) - at - begin.size());
    auto given =
        run({"data.shots=4",
             "linear_probe.c=[" + c + (c.find_first_of(".e") == std::string::npos ? ".0]" : "]")});
    ASSERT_EQ(given.code, 0) << given.err;
    std::string row = model + ", linear probe, c ";
    EXPECT_EQ(score(given, row + c), score(r, row + "chosen"));
  }
  auto all = run({"data.shots=15", "linear_probe.choose_c=true"});
  EXPECT_EQ(all.code, 2);
  EXPECT_NE(all.err.find("none is left"), std::string::npos) << all.err;
  auto more = run({"data.shots=20"});
  EXPECT_EQ(more.code, 0);
  EXPECT_NE(more.err.find("data.shots is 20, but worda has only 15 samples"), std::string::npos)
      << more.err;
}

TEST(TransmiterProgram, StoppedGoesOnFromItsFolder) {
  Scene scene;
  std::vector<std::string> job{"transmiter", "job.toml",
                               "--threads",  "1",
                               "--set",      "transmiter.epochs=300",
                               "--set",      "plus.epochs=300",
                               "--set",      "run.seeds=[1, 2, 3]",
                               "--run"};
  auto started = [&](const std::string& run) {
    std::vector<std::string> arguments = job;
    arguments.push_back(run);
    return arguments;
  };
  auto results = [&](const std::string& run) {
    std::map<std::string, std::string> files;
    std::filesystem::path top = scene.folder / run;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(top)) {
      std::string path = entry.path().lexically_relative(top).string();
      if (entry.is_regular_file() && path != "timing.jsonl" && path != "lock")
        files[path] = test::read_text(entry.path().string());
    }
    return files;
  };
  auto whole = test::run_program(started("whole"), scene.folder);
  ASSERT_EQ(whole.code, 0) << whole.err;
  auto expected = results("whole");
  ASSERT_EQ(expected.count("seed3/metrics.jsonl"), 1u);
  int round = 0;
  for (const char* until : {"seed1/weak.safetensors", "seed1/metrics.jsonl"})
    for (int signal : {SIGKILL, SIGINT}) {
      std::string run = concat("stopped", round++);
      test::Process process(started(run), scene.folder);
      ASSERT_TRUE(process.wait_for(scene.folder / concat(run, "/", until)));
      process.send(signal);
      auto stopped = process.wait();
      ASSERT_EQ(stopped.code, signal == SIGKILL ? 128 + SIGKILL : 130) << stopped.err;
      if (signal == SIGINT) {
        EXPECT_NE(stopped.err.find("pupil transmiter --run " + run + " --resume"),
                  std::string::npos)
            << stopped.err;
      }
      EXPECT_FALSE(std::filesystem::exists(scene.folder / (run + "/table.txt")));
      bool first_done = std::filesystem::exists(scene.folder / (run + "/seed1/metrics.jsonl"));
      auto end = test::run_program({"transmiter", "--run", run, "--resume"}, scene.folder);
      ASSERT_EQ(end.code, 0) << end.err;
      EXPECT_EQ(end.out.find("seed 1: finished before") != std::string::npos, first_done);
      EXPECT_EQ(end.out.substr(end.out.find("accuracy %")),
                whole.out.substr(whole.out.find("accuracy %")));
      EXPECT_TRUE(results(run) == expected) << until;
    }
  auto refused = [&](std::vector<std::string> arguments, const std::string& words) {
    arguments.insert(arguments.begin(), "transmiter");
    auto outcome = test::run_program(arguments, scene.folder);
    EXPECT_EQ(outcome.code, 2) << outcome.out;
    EXPECT_NE(outcome.err.find(words), std::string::npos) << outcome.err;
  };
  refused({"--run", "whole", "--resume", "--set", "transmiter.lr=0.5"}, "lr = 0.5");
  refused({"--run", "nowhere", "--resume"}, "nowhere/config.toml");
  refused({"--run", "whole"}, "which configuration");
  change(scene.path("weak", "test"), [](Tensor x) { return scale(x, 2); });
  refused({"--run", "whole", "--resume"}, "began with");
}

struct ReproducedScene : Scene {
  int rounds = 0;
  void mine(const std::string& results, const std::string& more = "") {
    test::write_text(folder / "mine.toml",
                     "[reproduce]\ntitle = \"t\"\nrecipe = \"job.toml\"\n" + results + more);
  }
  static std::string result(const std::string& row, const std::string& band,
                            const std::string& more = "") {
    return concat("[[reproduce.result]]\narm = \"", row, "\"\nband = ", band, "\n", more, "\n");
  }
  test::Outcome reproduce(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"reproduce", "mine.toml"});
    return test::run_program(arguments, folder);
  }
  void refused(const std::string& words) {
    auto outcome = reproduce({"--run", concat("refused", rounds++)});
    EXPECT_EQ(outcome.code, 2) << outcome.out;
    EXPECT_NE(outcome.err.find(words), std::string::npos) << outcome.err;
  }
};

TEST(TransmiterProgram, IsReproduced) {
  ReproducedScene scene;
  std::string minus = "minus = \"strong, zero-shot\"\n";
  scene.mine(scene.result("TransMiter, beta 500", "[0, 100]",
                          "published = \"90.1\"\nseed_band = [0, 100]\nsigma = 50.0") +
                 scene.result("TransMiter, beta 500", "[-100, 100]", minus) +
                 scene.result("weak, adapter", "[-100, 100]",
                              "error_over = \"strong, adapter without basis change\""),
             "[transmiter]\nlogits = 12\n");
  auto dry = scene.reproduce({"--dry-run"});
  ASSERT_EQ(dry.code, 0) << dry.err;
  for (const char* part : {"90 samples, 4 steps x 2 runs", "peak memory"})
    EXPECT_NE(dry.out.find(part), std::string::npos) << dry.out;
  auto outcome = scene.reproduce({"--run", "out"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  auto j = nlohmann::json::parse(test::read_text(scene.folder / "out/reproduction.json"));
  EXPECT_EQ(j["seeds"], nlohmann::json({1, 2}));
  std::map<std::string, Numbers> rows;
  for (const char* seed : {"1", "2"}) {
    std::istringstream lines(
        test::read_text(scene.folder / concat("out/study/seed", seed, "/metrics.jsonl")));
    for (std::string line; std::getline(lines, line);) {
      auto row = nlohmann::json::parse(line);
      rows[row["model"]].push_back(row["accuracy"]);
    }
  }
  const Numbers &moved = rows["TransMiter, beta 500"], &fixed = rows["strong, zero-shot"];
  ASSERT_EQ(moved.size(), 2u);
  ASSERT_EQ(fixed.size(), 1u);
  EXPECT_EQ(j["results"][0]["last"]["values"], nlohmann::json(moved));
  EXPECT_TRUE(j["results"][0]["best"].is_null());
  EXPECT_NEAR(j["results"][1]["last"]["values"][1].get<double>(), moved[1] - fixed[0], 1e-9);
  EXPECT_NEAR(
      j["results"][2]["last"]["values"][0].get<double>(),
      (100 - rows["weak, adapter"][0]) / (100 - rows["strong, adapter without basis change"][0]),
      1e-9);
  std::string before = test::read_text(scene.folder / "out/reproduction.md");
  EXPECT_NE(before.find("error of weak, adapter / error of strong"), std::string::npos) << before;
  auto again = scene.reproduce({"--run", "out", "--resume"});
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_NE(again.out.find("seed 2: finished before"), std::string::npos) << again.out;
  EXPECT_EQ(test::read_text(scene.folder / "out/reproduction.md"), before);

  for (const char* limit : {"seed_band = [100, 100]", "sigma = 0.0"}) {
    scene.mine(scene.result("weak, adapter", "[0, 100]", limit));
    EXPECT_EQ(scene.reproduce({"--run", concat("out", limit[1])}).code, 1) << limit;
  }
  scene.mine(scene.result("strong, zero-shot", "[0, 100]", "score = \"novel\""),
             "[data]\nprotocol = \"base_to_novel\"\n");
  ASSERT_EQ(scene.reproduce({"--run", "novel"}).code, 0);
  auto judged = nlohmann::json::parse(test::read_text(scene.folder / "novel/reproduction.json"));
  std::istringstream lines(test::read_text(scene.folder / "novel/study/seed1/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    auto row = nlohmann::json::parse(line);
    if (row["model"] != "strong, zero-shot") continue;
    EXPECT_NE(row["novel"], row["base"]);
    EXPECT_EQ(judged["results"][0]["last"]["values"], nlohmann::json({row["novel"]}));
  }
  scene.mine(scene.result("TransMiter, beta 5", "[0, 100]"));
  scene.refused("did you mean TransMiter, beta 500?");
  scene.mine(scene.result("weak, adapter", "[0, 100]", "score = \"novel\""));
  scene.refused("novel");
  scene.mine(scene.result("weak, adapter", "[0, 100]", minus + "error_over = \"weak, zero-shot\""));
  scene.refused("not both");
  scene.mine("[[reproduce.needs]]\npath = \"photos\"\nwhat = \"their photographs\"\n" +
             scene.result("weak, adapter", "[0, 100]"));
  scene.refused("photos (their photographs)");
}

// Files of the fine-tuned models that differ from seed to seed.
TEST(TransmiterProgram, SeedsWithFilesOfTheirOwn) {
  Scene scene;
  for (const char* seed : {"1", "2"})
    for (const char* part : {"train", "test"})
      data::save_npy(scene.folder / concat(part, seed, ".npy"),
                     gaussian(90, 6, uint64_t(seed[0])).to(DType::f32));
  std::vector<std::string> arguments{"transmiter",
                                     "job.toml",
                                     "--json",
                                     "--set",
                                     "weak.train_logits=[\"train{seed}.npy\"]",
                                     "--set",
                                     "weak.test_logits=[\"test{seed}.npy\"]"};
  auto accuracy = [&](std::vector<std::string> more) {
    more.insert(more.begin(), arguments.begin(), arguments.end());
    auto outcome = test::run_program(more, scene.folder);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    Numbers values;
    for (auto& j : nlohmann::json::parse(outcome.out))
      if (j["model"] == "weak, fine-tuned" || j["model"] == "weak, adapter")
        values.push_back(j["accuracy"]);
    return values;
  };
  Numbers both = accuracy({}), first = accuracy({"--set", "run.seeds=[1]"}),
          second = accuracy({"--set", "run.seeds=[2]"});
  EXPECT_EQ(both, (Numbers{first[0], second[0], first[1], second[1]}));
  EXPECT_NE(first[0], second[0]);
  std::filesystem::remove(scene.folder / "test2.npy");
  arguments.insert(arguments.end(), {"--run", "out"});
  auto outcome = test::run_program(arguments, scene.folder);
  EXPECT_EQ(outcome.code, 2);
  EXPECT_NE(outcome.err.find("test2.npy"), std::string::npos) << outcome.err;
  EXPECT_FALSE(std::filesystem::exists(scene.folder / "out"));
}

// END_TO_END: CLIP RN50 -> ViT-B/32 on 50 classes of Caltech-101, in its acceptance bands.
class EndToEnd : public testing::Test {
 protected:
  // scores by row, of every seed
  std::map<std::string, Numbers> run(const std::vector<std::string>& settings) {
    const char* source = std::getenv("PUPIL_SOURCE");
    std::string recipe = test::read_text(std::string(source ? source : ".") +
                                         "/tools/recipes/caltech_transmiter.toml");
    std::string shared = std::filesystem::canonical(test::shared_folder()).string() + "/";
    const std::string place = "../shared/";
    for (size_t at = 0; (at = recipe.find(place, at)) != std::string::npos; at += shared.size())
      recipe.replace(at, place.size(), shared);
    test::write_text(folder_ / "recipe.toml", recipe);
    std::vector<std::string> arguments{"transmiter", "recipe.toml", "--json", "--set",
                                       "transmiter.logits=256"};
    for (const std::string& setting : settings)
      arguments.insert(arguments.end(), {"--set", setting});
    auto r = test::run_program(arguments, folder_);
    EXPECT_EQ(r.code, 0) << r.err;
    std::map<std::string, Numbers> rows;
    for (auto& j : nlohmann::json::parse(r.out)) rows[j["model"]].push_back(j["accuracy"]);
    return rows;
  }
  test::TemporaryFolder folder_;
};

double average(const Numbers& values) {
  double total = 0;
  for (double v : values) total += v / double(values.size());
  return total;
}

constexpr double kImage = 100.0 / 478;

TEST_F(EndToEnd, InItsBands) {
  PUPIL_NEEDS_SHARED();
  auto rows = run({"linear_probe.c=[1.0, 100.0]", "plus.modes=[\"free\", \"orthogonal\"]"});
  const std::map<std::string, double> exact = {{"weak, zero-shot", 92.89},
                                               {"weak, fine-tuned", 96.44},
                                               {"strong, zero-shot", 96.44},
                                               {"strong, fine-tuned (upper bound)", 98.95},
                                               {"EFT, alpha 0.3", 98.54},
                                               {"EFT, alpha 0.5", 98.74},
                                               {"EFT, alpha 1", 98.54},
                                               {"EFT, alpha 2", 97.70},
                                               {"weak, Tip-Adapter, alpha 1, beta 5.5", 93.93},
                                               {"weak, Tip-Adapter, alpha 1, beta 1", 93.72},
                                               {"weak, Tip-Adapter, alpha 2, beta 5.5", 94.35},
                                               {"weak, Tip-Adapter, alpha 3, beta 1", 94.14},
                                               {"weak, Tip-Adapter, alpha 10, beta 5.5", 94.77},
                                               {"weak, Tip-Adapter, alpha 20, beta 5.5", 94.14},
                                               {"strong, Tip-Adapter, alpha 1, beta 5.5", 97.49},
                                               {"strong, Tip-Adapter, alpha 1, beta 1", 97.07},
                                               {"strong, Tip-Adapter, alpha 2, beta 5.5", 98.33},
                                               {"strong, Tip-Adapter, alpha 3, beta 1", 98.33},
                                               {"strong, Tip-Adapter, alpha 10, beta 5.5", 97.49},
                                               {"strong, Tip-Adapter, alpha 20, beta 5.5", 97.28}};
  for (auto& [name, percent] : exact) {
    ASSERT_EQ(rows[name].size(), 1u) << name;
    EXPECT_NEAR(rows[name][0], percent, kImage + 0.006) << name;
  }
  for (auto& [name, percent] :
       std::map<std::string, double>{{"weak, linear probe, c 1", 93.51},
                                     {"weak, linear probe, c 100", 94.56},
                                     {"strong, linear probe, c 1", 97.49},
                                     {"strong, linear probe, c 100", 98.74}})
    EXPECT_NEAR(rows[name].at(0), percent, 2 * kImage + 0.006) << name;

  const Numbers &transferred = rows["TransMiter, beta 500"], &weak = rows["weak, adapter"],
                &naive = rows["strong, adapter without basis change"];
  ASSERT_EQ(transferred.size(), 3u);
  double mean = average(transferred), squares = 0;
  for (double v : transferred) squares += (v - mean) * (v - mean);
  EXPECT_GE(mean, 98.0);
  EXPECT_LE(mean, 99.2);
  EXPECT_GE(mean, 96.44 + 1.0);
  EXPECT_LT(std::sqrt(squares / 2), 0.6);
  EXPECT_GE(average(weak), 95.2);
  EXPECT_LE(average(weak), 97.0);
  EXPECT_GE(average(naive), 97.0);
  EXPECT_LE(average(naive), 99.0);
  EXPECT_GE(mean, average(naive) - 0.3);
  for (auto name : {"TransMiter+, free", "TransMiter+, orthogonal"}) {
    EXPECT_GE(average(rows[name]), 98.3) << name;
    EXPECT_LE(average(rows[name]), 99.4) << name;
  }
}

TEST_F(EndToEnd, IsTheIdentityBeforeTraining) {
  PUPIL_NEEDS_SHARED();
  auto rows = run({"transmiter.epochs=0", "transmiter.beta=[500.0]", "run.seeds=[1]",
                   "plus.modes=[]", "linear_probe.c=[]"});
  EXPECT_EQ(rows["weak, adapter"], rows["weak, zero-shot"]);
  EXPECT_EQ(rows["strong, adapter without basis change"], rows["strong, zero-shot"]);
}

// The head that is fine-tuned when none is given is the published one.
TEST(ZeroShot, FineTunedHeadIsThePublishedOne) {
  PUPIL_NEEDS_SHARED();
  std::string clip = test::shared_folder() + "/data/clip/caltech101/";
  Tensor rows = data::read_npy(test::shared_folder() + "/data/caltech101/few16_50c_rows.npy");
  Tensor order = data::read_npy(clip + "derived/order1024.npy");
  Tensor labels = data::read_npy(clip + "few16_labels.npy");
  Tensor features = index_select(data::read_npy(clip + "few16_rn50.npy"), rows);
  Tensor start = normalize(index_select(data::read_npy(clip + "text_lvis1203_rn50.npy"),
                                        slice(order, 0, 0, 50).contiguous()));
  std::map<int64_t, int64_t> place;
  std::vector<int64_t> used, all(50);
  for (double row : rows.values()) place.emplace(labels.data<int64_t>()[int64_t(row)], 0);
  int64_t next = 0;
  for (auto& entry : place) entry.second = next++;
  for (double row : rows.values()) used.push_back(place[labels.data<int64_t>()[int64_t(row)]]);
  for (int64_t k = 0; k < 50; k++) all[size_t(k)] = k;
  Tensor head = fine_tune_head(features, from(used, {int64_t(used.size())}), start, all);
  Tensor published = data::read_npy(clip + "derived/rn50_ft16_head_50c.npy").to(DType::f32);
  EXPECT_LT(distance(head, published), 0.02 * distance(start, published));
}

}  // namespace
}  // namespace pupil::methods
