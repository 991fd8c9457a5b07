// aft.*: the training protocol and whole runs.
#include <algorithm>

#include "../train.h"
#include "aft.h"

namespace pupil::verify {
namespace {

nn::Schedule per_epoch(const EpochPlan& plan) {
  nn::Schedule schedule;
  schedule.kind = nn::Schedule::cosine;
  schedule.total = plan.epochs;
  return schedule;
}

void schedule(Case& c) {
  EpochPlan plan(c.integer("steps"), c.integer("n_train"), c.integer("batch_size"));
  nn::Schedule schedule = per_epoch(plan);
  std::vector<double> lr, s_lr;
  for (int64_t e = 0; e < plan.epochs; e++) {
    lr.push_back(c.number("lr") * schedule(e));
    s_lr.push_back(c.number("s_lr") * schedule(e));
  }
  c.result("lr", lr);
  c.result("s_lr", s_lr);
  c.result("counts", {double(plan.batches), double(plan.epochs), double(plan.batches * plan.epochs),
                      double(plan.last), double(plan.few())});
}

// The arch of the case: features from x. Names as in the case, under "student.".
struct Student {
  std::string arch;
  std::optional<nn::Linear> first, second, classifier;
  std::optional<nn::BatchNorm> norm;

  Student(const nn::Scope& scope, const std::string& arch, int64_t in, int64_t hidden,
          int64_t width, int64_t classes)
      : arch(arch) {
    nn::Scope backbone = scope / "backbone";
    if (arch == "linear") {
      first.emplace(backbone, in, width);
    } else if (arch == "mlp") {
      first.emplace(backbone / 0, in, hidden);
      second.emplace(backbone / 2, hidden, width);
    } else if (arch == "mlp_bn") {
      first.emplace(backbone / 0, in, hidden, false);
      norm.emplace(backbone / 1, hidden);
      second.emplace(backbone / 3, hidden, width);
    } else {
      throw Unsupported("arch = " + arch);
    }
    classifier.emplace(scope / "classifier", width, classes);
  }

  models::Output operator()(const Tensor& x, bool train) {
    Tensor features = (*first)(x);
    if (norm) features = (*norm)(features, {train, nullptr, nullptr}, Activation::relu);
    if (arch == "mlp") features = relu(features);
    if (second) features = (*second)(features);
    return {(*classifier)(features), features};
  }
};

// Mean cross-entropy, percent right, mean of -sum p ln(p + 1e-8).
void evaluate(Case& c, const std::string& prefix, const Tensor& logits, const Tensor& labels) {
  NoGrad no_grad;
  c.result(prefix + "loss", cross_entropy(logits, labels));
  Tensor p = softmax(logits);
  c.result(prefix + "entropy",
           scale(sum(mul(p, log(add_scalar(p, 1e-8)))), -1 / double(logits.dim(0))));
  std::vector<double> values = logits.values(), wanted = labels.values();
  size_t classes = size_t(logits.dim(1)), right = 0;
  for (size_t i = 0; i < wanted.size(); i++) {
    auto row = values.begin() + int64_t(i * classes);
    auto best = std::max_element(row, row + int64_t(classes)) - row;
    right += best == int64_t(wanted[i]);
  }
  c.result(prefix + "accuracy", full({}, 100 * double(right) / double(wanted.size()), DType::f64));
}

void evaluation(Case& c) {
  Tensor logits = c.get("in.logits"), labels = c.get("in.labels");
  int64_t batch = c.integer("batch_size"), n = logits.dim(0);
  int64_t limit = c.integer("max_test_points", n), seen = 0;
  while (seen < n && seen < limit) seen = std::min(n, seen + batch);
  evaluate(c, "", slice(logits, 0, 0, seen), slice(labels, 0, 0, seen));
}

Tensor pick(const Tensor& labels, const Tensor& at) {  // labels[at], both i64
  Tensor picked = zeros(at.shape(), DType::i64);
  for (int64_t i = 0; i < at.numel(); i++)
    picked.data<int64_t>()[i] = labels.data<int64_t>()[at.data<int64_t>()[i]];
  return picked;
}

void gather_psi(Case& c) {
  Tensor rows = pick(c.get("in.index"), c.get("in.batch"));
  std::vector<Tensor> parts;
  for (int m = 0; c.has(concat("in.features.", m)); m++)
    parts.push_back(index_select(c.get(concat("in.features.", m)), rows));
  c.result("psi", cat(parts, 1));
  c.result("x_index", rows);
}

nn::OptimizerOptions optimizer_options(const std::string& name) {
  nn::OptimizerOptions o;
  if (name == "sgd")
    o.momentum = 0.9;
  else if (name == "adam")
    o.algorithm = nn::Algorithm::adam;
  else if (name == "adamw")
    o.algorithm = nn::Algorithm::adamw;
  else
    throw Unsupported("optimizer = " + name);
  return o;
}

void trajectory(Case& c) {
  methods::AftOptions o;
  o.teacher_widths = c.integers("feat_dims");
  Tensor x = c.get("in.x"), psi = c.get("in.psi"), y = c.get("in.y"), order = c.get("in.order");
  c.ignore("frozen_batches");  // the order of every epoch is given
  int64_t width = c.integer("d_phi"), classes = c.integer("n_classes");
  AftRun run(c, c.text("method", "aft"), o, width, classes);
  run.start("prior.");
  size_t priors = run.store.params().size();
  run.store.source(c.parameters("student."));
  Student student(nn::Scope(run.store), c.text("arch", ""), x.dim(1), c.integer("hidden"), width,
                  classes);
  run.store.require_complete();

  nn::Group group{{}, c.number("lr"), c.number("weight_decay")};
  for (size_t k = priors; k < run.store.params().size(); k++)
    if (!run.store.params()[k].buffer) group.names.push_back(run.store.params()[k].name);
  std::vector<nn::Group> groups = run.groups();
  groups.push_back(group);
  nn::Optimizer optimizer(run.store, groups, optimizer_options(c.text("optimizer", "")));

  int64_t n = x.dim(0), batch = c.integer("batch_size"), every = c.integer("prior_freq", 1);
  EpochPlan plan(c.integer("steps"), n, batch);
  nn::Schedule schedule = per_epoch(plan);
  std::vector<double> ce, regulariser, total;
  for (int64_t epoch = 0; epoch < plan.epochs; epoch++) {
    Tensor rows = view(slice(order, 0, epoch, epoch + 1), {n});
    for (int64_t k = 0; k < plan.batches; k++) {
      Tensor index = slice(rows, 0, k * batch, std::min(n, (k + 1) * batch)).contiguous();
      models::Output out = student(index_select(x, index), true);
      if (k % every > 0) out = {out.logits.detach(), out.features.detach()};
      methods::Loss loss = run.loss(out, index_select(psi, index), pick(y, index));
      ce.push_back(loss.parts[0].value.item());
      regulariser.push_back(loss.parts.size() > 1 ? loss.parts[1].value.item() : 0);
      total.push_back(loss.total.item());
      optimizer.zero_grad();
      if (!loss.total.requires_grad()) continue;
      backward(loss.total);
      optimizer.step(schedule(epoch));
    }
  }
  c.result("ce_per_step", ce);
  c.result("reg_per_step", regulariser);
  c.result("loss_per_step", total);
  for (const nn::Param& p : run.store.params()) {
    std::string prior = run.own_name(p.name);
    c.result("param." + (prior.empty() ? "student." + p.name : "prior." + prior), p.value);
  }
  NoGrad no_grad;
  evaluate(c, "test_", student(c.get("in.test_x"), false).logits, c.get("in.test_y"));
}

}  // namespace

void add_aft_training(Adapters& all) {
  all["aft.schedule"] = schedule;
  all["aft.evaluate"] = evaluation;
  all["aft.gather_psi"] = gather_psi;
  all["aft.trajectory"] = trajectory;
}

}  // namespace pupil::verify
