// Factor transfer on feature vectors, as in the evaluation of AFT (Kim et al. 2018, arXiv
// 1802.04977, for feature maps). Stage 1, before the training: one auto-encoder per teacher on the
// features of the training samples; its code is the teacher's factor. Stage 2: a translator of the
// student's features should give the factors, both as unit vectors, in the L1 norm.
#include <algorithm>

#include "../autograd/samples.h"
#include "../nn/optim.h"
#include "../tensor/memory.h"
#include "baselines.h"
#include "method.h"

namespace pupil::methods {

Translator::Translator(const nn::Scope& scope, int64_t width, int64_t factors)
    : first(scope / 0, width, width),
      second(scope / 2, width, factors),
      third(scope / 4, factors, factors, nn::Init{}, nn::fan_in_uniform(factors)) {}

Tensor Translator::operator()(const Tensor& phi) const {
  // [ft 2]
  return third(relu(second(relu(first(to_dtype(phi, first.weight.dtype()))))));
}

Tensor factor_transfer_loss(const Tensor& translated, const Tensor& factors) {
  PUPIL_CHECK(
      translated.rank() == 2 && translated.shape() == factors.shape() && translated.dim(0) > 0,
      "ft: translated features ", translated.shape(), " and factors ", factors.shape(),
      " must have one shape");
  require_finite("ft", "factors", factors);
  Tensor target = normalize(factors.detach().to(translated.dtype()));
  // [ft 3]
  return scale(sum(abs(sub(normalize(translated), target))), 1 / double(translated.dim(0)));
}

Autoencoder::Autoencoder(const nn::Scope& scope, int64_t width) {
  int64_t code = width / 2;
  nn::Scope in = scope / "encoder", out = scope / "decoder";
  encoder = {{in / 0, width, width}, {in / 2, width, code}, {in / 4, code, code}};
  decoder = {{out / 0, code, code}, {out / 2, code, width}, {out / 4, width, width}};
}

Tensor Autoencoder::encode(const Tensor& x) const {
  // [ft 1]
  return relu(encoder[2](relu(encoder[1](relu(encoder[0](x))))));
}

Tensor Autoencoder::decode(const Tensor& code) const {
  return decoder[2](relu(decoder[1](relu(decoder[0](code)))));
}

AutoencoderFit fit_autoencoder(nn::Store& store, const Autoencoder& coder, const Tensor& rows,
                               const Tensor& held_out, const AutoencoderOptions& o,
                               const std::function<void(const AutoencoderFit&)>& each_epoch) {
  PUPIL_CHECK(rows.rank() == 2 && held_out.rank() == 2 && rows.dim(1) == held_out.dim(1) &&
                  rows.dim(0) > 0 && held_out.dim(0) > 0 && o.batch > 0,
              "fit_autoencoder: rows ", rows.shape(), " and held-out rows ", held_out.shape());
  nn::Group all{{}, o.lr, 0};
  for (const nn::Param& p : store.params()) all.names.push_back(p.name);
  nn::OptimizerOptions adam;
  adam.algorithm = nn::Algorithm::adam;
  nn::Optimizer optimizer(store, {all}, adam);
  std::vector<Tensor> best;
  for (const nn::Param& p : store.params()) best.push_back(p.value.clone());

  auto batches = [&](const Tensor& from, auto&& f) {
    for (int64_t i = 0; i < from.dim(0); i += o.batch) {
      StepScope scope;
      f(slice(from, 0, i, std::min(from.dim(0), i + o.batch)).contiguous());
    }
  };
  auto error = [&](const Tensor& x) { return square(sub(coder.decode(coder.encode(x)), x)); };
  AutoencoderFit fit{INFINITY, 0};
  for (int64_t patience = o.patience; fit.epochs < o.epochs && patience > 0;) {
    batches(rows, [&](const Tensor& x) {
      optimizer.zero_grad();
      backward(mean(error(x)));
      optimizer.step();
    });
    double total = 0;
    batches(held_out, [&](const Tensor& x) {
      NoGrad no_grad;
      total += sum(error(x)).item();
    });
    fit.epochs++;
    double loss = total / double(held_out.numel());
    if (loss < fit.best_loss) {
      fit.best_loss = loss;
      for (size_t k = 0; k < best.size(); k++) copy_into(best[k], store.params()[k].value);
      patience = o.patience;
    } else {
      patience--;
    }
    if (each_epoch) each_epoch(fit);
  }
  PUPIL_CHECK(std::isfinite(fit.best_loss) || o.epochs < 1,
              "ft: the auto-encoder's error is not finite");
  for (size_t k = 0; k < best.size(); k++) copy_into(store.params()[k].value, best[k]);
  return fit;
}

namespace {

// Every tenth row is held out for the early stopping, at least one.
std::pair<Tensor, Tensor> hold_out(const Tensor& features) {
  std::vector<int64_t> rows, held;
  int64_t n = features.dim(0);
  for (int64_t i = 0; i < n; i++)
    (i % 10 == 9 || (n < 10 && i == n - 1) ? held : rows).push_back(i);
  if (rows.empty()) rows = held;
  auto pick = [&](const std::vector<int64_t>& list) {
    return index_select(features, from(std::span<const int64_t>(list), {int64_t(list.size())}));
  };
  return {pick(rows), pick(held)};
}

struct Encoder {  // stage 1's result: buffers of the run, so that a resumed run has them
  std::vector<Tensor> weights, biases;
  Encoder(const nn::Scope& scope, int64_t width) {
    int64_t code = width / 2;
    const std::pair<int64_t, int64_t> sizes[] = {{width, width}, {width, code}, {code, code}};
    for (int k = 0; k < 3; k++) {
      weights.push_back((scope / (2 * k)).buffer("weight", {sizes[k].second, sizes[k].first}, {}));
      biases.push_back((scope / (2 * k)).buffer("bias", {sizes[k].second}, {}));
    }
  }
  Tensor operator()(Tensor x) const {
    x = x.to(weights[0].dtype());
    for (size_t k = 0; k < 3; k++) x = relu(linear(x, weights[k], biases[k]));
    return x;
  }
  void fit(const Tensor& rows, const Tensor& held, uint64_t seed, const std::string& path,
           const AutoencoderOptions& o,
           const std::function<void(const AutoencoderFit&)>& each_epoch) const {
    DType dtype = weights[0].dtype();
    nn::Store store(seed, dtype);
    Autoencoder coder(nn::Scope(store, path), rows.dim(1));
    fit_autoencoder(store, coder, rows.to(dtype), held.to(dtype), o, each_epoch);
    for (size_t k = 0; k < 3; k++) {
      copy_into(weights[k], coder.encoder[k].weight);
      copy_into(biases[k], coder.encoder[k].bias);
    }
  }
};

}  // namespace

Method factor_transfer_method() {
  AutoencoderOptions defaults;
  Method method;
  method.name = "ft";
  method.summary = "factor transfer: a translated student against auto-encoded teacher features";
  method.source = "Kim et al. 2018, arXiv 1802.04977, on vectors as in arXiv 2406.07337";
  method.options = {{"beta", 10.0, "strength of the regulariser", "official code: prec"},
                    {"code_epochs", defaults.epochs, "of the auto-encoders, at most"},
                    {"code_batch", defaults.batch, "samples in a step of the auto-encoders"},
                    {"code_lr", defaults.lr, "Adam's learning rate of the auto-encoders"},
                    {"code_patience", defaults.patience,
                     "epochs without a better error on samples that are not fitted; then it stops"},
                    {"early_stop_on", std::string("holdout"),
                     "these samples: holdout, every tenth of training; or test, those of data.test",
                     "official code: test"}};
  method.explanation.symbols = {
      {"Phi", "(n, p)", "student features: what enters its last linear layer"},
      {"Psi", "(n, q)", "teacher features side by side, unscaled; a constant"},
      {"F", "(n, f)", "factors: codes of the teachers side by side, f = sum of floor(q_m / 2)"},
      {"t", "(n, f)", "the student's translation; its last weight starts at 0"}};
  method.explanation.equations = {{"1",
                                   "code = relu(E4 relu(E2 relu(E0 Psi))), fitted with its decoder "
                                   "to 1/(n q) sum (D(code) - Psi)^2"},
                                  {"2", "t = L4 relu(L2 relu(L0 Phi))"},
                                  {"3", "R = 1/n sum_i sum_k |t_ik / |t_i| - F_ik / |F_i||"}};
  method.explanation.cases = {"aft.ft_loss", "aft.ft_autoencoder", "aft.ft_autoencoder_fit"};
  method.make = [](const Options& options, const nn::Scope& scope, const Setup& setup) {
    double beta = at_least_zero(options, "beta");
    AutoencoderOptions o{options.integer("code_epochs"), options.integer("code_batch"),
                         options.integer("code_patience"), above_zero(options, "code_lr")};
    for (auto [name, value] : {std::pair{"code_epochs", o.epochs},
                               {"code_batch", o.batch},
                               {"code_patience", o.patience}})
      if (value < 1) fail_input(name, " must be at least 1, got ", value);
    const std::string& early_stop_on = options.text("early_stop_on");
    bool on_test = early_stop_on == "test";
    if (!on_test && early_stop_on != "holdout")
      fail_input("unknown early_stop_on '", early_stop_on, "'",
                 did_you_mean(early_stop_on, {"holdout", "test"}));
    total_width(setup);
    std::vector<Encoder> encoders;
    int64_t factors = 0;
    for (size_t m = 0; m < setup.teacher_widths.size(); m++) {
      int64_t width = setup.teacher_widths[m];
      if (width < 2) fail_input("teacher ", m, " gives features of width ", width, "; at least 2");
      encoders.emplace_back(scope / concat("teacher", m) / "encoder", width);
      factors += width / 2;
    }
    Translator translator(scope / "proj", setup.student_width, factors);
    Instance instance;
    instance.groups.push_back(own_group(scope, setup.lr));
    if (on_test)
      instance.warnings.push_back(
          "early_stop_on is test: the auto-encoders see test samples, as in the official code");
    instance.prepare = [encoders, o, on_test, path = scope.path,
                        seed = scope.store.seed()](const Survey& survey) {
      for (size_t m = 0; m < encoders.size(); m++) {
        Tensor features = survey.teacher(m);
        std::pair<Tensor, Tensor> parts =
            on_test ? std::pair{features, survey.teacher_on_test(m)} : hold_out(features);
        encoders[m].fit(
            parts.first, parts.second, seed, concat(path, ".teacher", m), o,
            [&](const AutoencoderFit& fit) {
              survey.progress(concat("ft: auto-encoder ", m + 1, " of ", encoders.size(),
                                     ", epoch ", fit.epochs, " of at most ", o.epochs,
                                     ", held-out error ", fit.best_loss));
            });
      }
    };
    instance.loss = [=](const Step& step) {
      std::vector<Tensor> codes;
      for (size_t m = 0; m < encoders.size(); m++) {
        const Teacher& teacher = step.teachers[m];
        if (!teacher.features)
          fail_input("ft: teacher '", teacher.name,
                     "' gives no features; store them or choose another method");
        require_finite("ft", "teacher features", teacher.features);
        codes.push_back(encoders[m](teacher.features.detach()));
      }
      Tensor translated = translator(step.student.features);
      return scale(factor_transfer_loss(translated, cat(codes, 1)), beta);
    };
    return instance;
  };
  return method;
}

PUPIL_SAMPLES(ft) {
  s.add("4x5", {{4, 5}, {4, 5}}, [](auto& v) { return factor_transfer_loss(v[0], v[1]); },
        {.low = 0.1, .high = 1, .bf16 = false, .constants = {1}});
  s.add_error("rows", {{4, 5}, {3, 5}}, [](auto& v) { return factor_transfer_loss(v[0], v[1]); });
}

}  // namespace pupil::methods
