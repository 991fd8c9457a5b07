// B-Tuning: one target of class scores from all teachers, each through the posterior mean of a
// linear model of the task on its features, weighted by the evidence of that model (LogME).
#include "../autograd/samples.h"
#include "../tensor/linalg.h"
#include "../tensor/runtime.h"
#include "baselines.h"
#include "method.h"

namespace pupil::methods {

constexpr int64_t kMostClasses = 1 << 20;  // a label beyond is taken for damage, not for a class

// The fixed-point iteration of You et al. 2021, arXiv 2102.11005, section 4, one class at a time on
// the singular values of the features. Every min(N, D) of them stays, zeros too, as in the official
// code.
LogMe logme(const Tensor& features, const Tensor& labels, int64_t classes) {
  PUPIL_CHECK(features.rank() == 2 && features.numel() > 0 && labels.dtype() == DType::i64 &&
                  labels.shape() == Shape({features.dim(0)}),
              "logme: features ", features.shape(), " and labels ", labels.shape());
  require_finite("logme", "features", features);
  int64_t n = features.dim(0), d = features.dim(1), largest = 0;
  Tensor host = labels.to(Device{}).contiguous();
  const int64_t* label = host.data<int64_t>();
  for (int64_t i = 0; i < n; i++) {
    PUPIL_CHECK(label[i] >= 0 && (!classes || label[i] < classes), "logme: label ", label[i],
                " of sample ", i, " is outside 0 to ", classes - 1);
    largest = std::max(largest, label[i]);
  }
  PUPIL_CHECK(classes || largest < kMostClasses, "logme: label ", largest, " would make more than ",
              kMostClasses, " classes; give their number");
  if (!classes) classes = largest + 1;

  NoGrad no_grad;
  Svd f = svd(features.detach().to(Device{}).to(DType::f64));
  int64_t k = f.s.dim(0);
  Tensor u = f.u.contiguous();
  std::vector<double> s = f.s.values();
  LogMe result;
  result.alpha = empty({classes}, DType::f64);
  result.beta = empty({classes}, DType::f64);
  Tensor in_basis = empty({classes, k}, DType::f64);  // of mu: S x / (t + sigma)
  std::vector<double> x(static_cast<size_t>(k));      // U^T y of the class's one-hot y
  for (int64_t c = 0; c < classes; c++) {
    std::fill(x.begin(), x.end(), 0.0);
    double members = 0;  // ||y||^2
    for (int64_t i = 0; i < n; i++) {
      if (label[i] != c) continue;
      members++;
      for (int64_t j = 0; j < k; j++) x[size_t(j)] += u.data<double>()[i * k + j];
    }
    double outside = members;  // of the columns of U
    for (double v : x) outside -= v * v;
    double alpha = 1, beta = 1, t = 1, m2 = 0, res2 = 0;
    for (int step = 0; step < 11; step++) {
      t = alpha / beta;
      double gamma = 0;
      m2 = 0;
      res2 = outside;
      for (size_t j = 0; j < x.size(); j++) {
        double sigma = s[j] * s[j], in = x[j] * x[j];
        gamma += sigma / (sigma + t);
        m2 += sigma * in / ((t + sigma) * (t + sigma));
        res2 += in / ((1 + sigma / t) * (1 + sigma / t));
      }
      alpha = gamma / (m2 + 1e-5);
      beta = (double(n) - gamma) / (res2 + 1e-5);
      if (std::fabs(alpha / beta - t) / t <= 1e-3) break;
    }
    // [btuning 1]
    double evidence = 0.5 * double(d) * std::log(alpha) + 0.5 * double(n) * std::log(beta) -
                      0.5 * beta * res2 - 0.5 * alpha * m2 - 0.5 * double(n) * std::log(2 * M_PI);
    for (size_t j = 0; j < x.size(); j++) {
      evidence -= 0.5 * std::log(alpha + beta * s[j] * s[j]);
      in_basis.data<double>()[c * k + int64_t(j)] = s[j] * x[j] / (t + s[j] * s[j]);
    }
    result.score += evidence / double(n) / double(classes);
    result.alpha.data<double>()[c] = alpha;
    result.beta.data<double>()[c] = beta;
  }
  result.weights = matmul(in_basis, f.vt);
  return result;
}

std::vector<double> btuning_weights(const std::vector<double>& scores, double temperature) {
  PUPIL_CHECK(!scores.empty() && temperature > 0, "btuning: ", scores.size(),
              " scores, temperature ", temperature);
  Tensor row = from(std::span<const double>(scores), {1, int64_t(scores.size())});
  return softmax(row, temperature).values();  // [btuning 2]
}

Tensor btuning_loss(const Tensor& phi, const Tensor& psi, const std::vector<double>& weights,
                    const std::vector<Tensor>& mu, const Tensor& mu_student) {
  PUPIL_CHECK(phi.rank() == 2 && psi.rank() == 2 && phi.dim(0) == psi.dim(0) &&
                  mu_student.rank() == 2 && mu_student.dim(1) == phi.dim(1) && !mu.empty() &&
                  weights.size() == mu.size(),
              "btuning: student features ", phi.shape(), ", teacher features ", psi.shape(),
              ", student weights ", mu_student.shape(), ", ", mu.size(), " teachers, ",
              weights.size(), " scores do not fit");
  require_finite("btuning", "teacher features", psi);
  DType dtype = acc_dtype(phi.dtype());
  Tensor target, values = psi.detach().to(dtype);
  int64_t begin = 0;
  for (size_t m = 0; m < mu.size(); m++) {
    int64_t width = mu[m].dim(1);
    PUPIL_CHECK(begin + width <= psi.dim(1) && mu[m].dim(0) == mu_student.dim(0),
                "btuning: class weights ", mu[m].shape(), " of teacher ", m, " for features ",
                psi.shape());
    Tensor block = slice(values, 1, begin, begin + width);
    Tensor part = scale(matmul(block, mu[m].to(dtype), false, true), weights[m]);
    target = target ? add(target, part) : part;
    begin += width;
  }
  PUPIL_CHECK(begin == psi.dim(1), "btuning: class weights for ", begin,
              " values, teacher features ", psi.shape());
  Tensor said = matmul(to_dtype(phi, dtype), mu_student.detach().to(dtype), false, true);
  // [btuning 3]
  return mean(square(sub(said, target.detach())));
}

Method btuning_method() {
  Method method;
  method.name = "btuning";
  method.summary = "class scores of the student match those of teachers ranked by LogME";
  method.source = "You et al. 2021, arXiv 2110.10545, as in arXiv 2406.07337";
  method.options = {{"beta", 100.0, "strength of the regulariser", "official B-Tuning code: 100"},
                    {"temperature", 0.1, "of the soft-max over the teachers' LogME scores"}};
  method.explanation.symbols = {
      {"Phi", "(n, p)", "student features: what enters its last linear layer"},
      {"Psi", "(n, q)", "teacher features side by side, unscaled; a constant"},
      {"S_m, M_m", "(), (C, q_m)",
       "LogME score and class weights of teacher m, found before the training"},
      {"M_0", "(C, p)", "class weights of the student before the training"}};
  method.explanation.equations = {
      {"1",
       "S_m, M_m: evidence and posterior mean of a linear model of the labels on Psi_m (LogME)"},
      {"2", "pi = softmax(S / temperature)"},
      {"3", "R = 1/(n C) sum (Phi M_0^T - sum_m pi_m Psi_m M_m^T)^2"}};
  method.explanation.cases = {"aft.logme", "aft.btuning_loss"};
  method.make = [](const Options& options, const nn::Scope& scope, const Setup& setup) {
    double beta = at_least_zero(options, "beta");
    double temperature = above_zero(options, "temperature");
    total_width(setup);
    // What stage 1 finds: buffers, so that a resumed run has them.
    int64_t count = int64_t(setup.teacher_widths.size());
    Tensor scores = scope.buffer("scores", {count}, {});
    std::vector<Tensor> mu;
    for (int64_t m = 0; m < count; m++)
      mu.push_back(
          scope.buffer(concat("mu.", m), {setup.classes, setup.teacher_widths[size_t(m)]}, {}));
    Tensor mu_student = scope.buffer("mu_student", {setup.classes, setup.student_width}, {});
    Instance instance;
    instance.prepare = [=, classes = setup.classes](const Survey& survey) {
      for (size_t m = 0; m < mu.size(); m++) {
        LogMe teacher = logme(survey.teacher(m), survey.labels, classes);
        copy_into(mu[m], teacher.weights);
        copy_into(slice(scores, 0, int64_t(m), int64_t(m) + 1),
                  full({1}, teacher.score, scores.dtype()));
      }
      copy_into(mu_student, logme(survey.student(), survey.labels, classes).weights);
    };
    instance.loss = [=](const Step& step) {
      std::vector<double> weights = btuning_weights(scores.values(), temperature);
      Tensor psi = teacher_features("btuning", step);
      return scale(btuning_loss(step.student.features, psi, weights, mu, mu_student), beta);
    };
    instance.statistics = [=] {
      std::vector<std::pair<std::string, double>> all;
      std::vector<double> weights = btuning_weights(scores.values(), temperature);
      for (size_t m = 0; m < weights.size(); m++)
        all.emplace_back(concat("teacher", m), weights[m]);
      return all;
    };
    return instance;
  };
  return method;
}

PUPIL_SAMPLES(btuning) {
  auto f = [](auto& v) {
    return btuning_loss(v[0], v[1], {0.3, 0.7}, {v[2].detach(), v[3].detach()}, v[4].detach());
  };
  test::SampleOptions constants{.constants = {1, 2, 3, 4}};
  s.add("5x3 5x4", {{5, 3}, {5, 4}, {2, 1}, {2, 3}, {2, 3}}, f, constants);
  s.add_error("rows", {{5, 3}, {4, 4}, {2, 1}, {2, 3}, {2, 3}}, f);
}

}  // namespace pupil::methods
