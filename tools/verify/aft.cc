// aft.*: the method step by step, its objective and whole training runs.
#include "../../methods/aft.h"

#include <algorithm>
#include <numeric>

#include "../../methods/objective.h"
#include "case.h"

namespace pupil::verify {
namespace {

methods::AftOptions aft_options(Case& c, int64_t width = 0) {
  methods::AftOptions o;
  try {
    o.kernel = methods::aft_kernel_named(c.text("kernel", "linear"));
    o.map = methods::aft_map_named(c.text("map", "diag"));
  } catch (const InputError& error) {
    throw Unsupported(error.what());
  }
  c.ignore("feat_dims");
  o.teacher_widths = c.has_attribute("feat_dims") ? c.integers("feat_dims") : std::vector{width};
  return o;
}

void kernel(Case& c) {
  methods::AftOptions o = aft_options(c);
  c.result("k", methods::aft_kernel(c.get("in.x"), o.kernel));
}

void map_psi(Case& c) {
  Tensor psi = c.get("in.psi");
  methods::AftOptions o = aft_options(c, psi.dim(-1));
  c.result("t", methods::aft_map(psi, c.get("param.s"), o));
}

// The method with the case's options, as a training run uses it.
struct Run {
  nn::Store store;
  std::optional<methods::Objective> objective;

  Run(Case& c, const std::string& method, const methods::AftOptions& o)
      : store(0, c.dtype(), c.device()) {
    methods::Choice choice{method, {}, {}};
    if (method == "aft")
      choice.options = {
          {"beta", c.number("beta", 10)},
          {"kernel", std::string(o.kernel == methods::AftKernel::rbf ? "rbf" : "linear")},
          {"map", std::string(o.map == methods::AftMap::dense     ? "dense"
                              : o.map == methods::AftMap::product ? "product"
                                                                  : "diag")},
          {"learn_s", c.flag("learn_s", true)},
          {"s_lr", c.number("s_lr", 1e-2)}};
    methods::Setup setup;
    setup.teacher_widths = o.teacher_widths;
    objective.emplace(std::vector{choice}, nn::Scope(store), setup);
  }

  Tensor weights() { return store.find("loss.aft.s") ? store.find("loss.aft.s")->value : Tensor(); }

 private:
  template <class F>
  auto with_step(const models::Output& student, const Tensor& psi, const Tensor& labels,
                 const F& f) const {
    methods::Batch batch;
    batch.labels = labels;
    methods::Teacher teacher;
    teacher.name = "psi";
    teacher.features = psi;
    nn::Taps taps;
    return f(methods::Step{batch, student, taps, {&teacher, 1}, {}});
  }

 public:
  methods::Loss loss(const models::Output& student, const Tensor& psi, const Tensor& labels) const {
    return with_step(student, psi, labels, *objective);
  }
  Tensor regulariser(const Tensor& phi, const Tensor& psi) const {
    return with_step({Tensor(), phi}, psi, {}, objective->terms().at(0).instance.loss);
  }
};

// beta * delta, as the method gives it to the objective.
void loss(Case& c) {
  Tensor phi = c.get("in.phi"), psi = c.constant("in.psi");
  methods::AftOptions o = aft_options(c, psi.dim(-1));
  Tensor start = c.get("param.s").detach();
  Run run(c, "aft", o);
  Tensor s = run.weights();
  copy_into(s, start);
  c.track("s", s);
  c.result("loss", run.regulariser(phi, psi));
  NoGrad no_grad;
  c.result("delta", methods::aft_delta(phi, psi, s, o));
  c.result("k", methods::aft_kernel(phi, o.kernel));
  c.result("k_target", methods::aft_kernel(methods::aft_map(psi, s, o), o.kernel));
}

void objective(Case& c) {
  Tensor phi = c.get("in.phi"), psi = c.constant("in.psi");
  methods::AftOptions o = aft_options(c, psi.dim(-1));
  Tensor start = c.get("param.s").detach();
  Run run(c, "aft", o);
  Tensor s = run.weights();
  copy_into(s, start);
  c.track("s", s);
  Tensor logits = linear(phi, c.get("param.head.weight"), c.get("param.head.bias"));
  methods::Loss loss = run.loss({logits, phi}, psi, c.get("in.labels"));
  c.result("loss", loss.total);
  c.result("ce", loss.parts[0].value);
  NoGrad no_grad;
  c.result("delta", methods::aft_delta(phi, psi, s, o));
}

struct Plan {  // batches and learning rates of a run: aft.md, section 7
  int64_t batches, epochs, last;
  nn::Schedule schedule;
  Plan(int64_t steps, int64_t n, int64_t batch) : batches((n + batch - 1) / batch) {
    epochs = int64_t(std::floor(double(steps) / double(batches) + 0.5));
    last = n - (batches - 1) * batch;
    schedule.kind = nn::Schedule::cosine;
    schedule.total = epochs;
  }
};

void schedule(Case& c) {
  Plan plan(c.integer("steps"), c.integer("n_train"), c.integer("batch_size"));
  std::vector<double> lr, s_lr;
  for (int64_t e = 0; e < plan.epochs; e++) {
    lr.push_back(c.number("lr") * plan.schedule(e));
    s_lr.push_back(c.number("s_lr") * plan.schedule(e));
  }
  c.result("lr", lr);
  c.result("s_lr", s_lr);
  c.result("counts", {double(plan.batches), double(plan.epochs), double(plan.batches * plan.epochs),
                      double(plan.last), double(plan.batches <= 100)});
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
    if (norm) features = (*norm)(features, {train, nullptr, nullptr}, true);
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
  std::string method = c.text("method", "aft");
  const std::map<std::string, std::string> kernels = {
      {"aft", "diag"}, {"aft_dense", "dense"}, {"aft_rbf", "diag"}};
  if (method != "stl" && !kernels.count(method)) throw Unsupported("method = " + method);
  methods::AftOptions o;
  if (method == "aft_dense") o.map = methods::AftMap::dense;
  if (method == "aft_rbf") o.kernel = methods::AftKernel::rbf;
  o.teacher_widths = c.integers("feat_dims");
  Tensor x = c.get("in.x"), psi = c.get("in.psi"), y = c.get("in.y"), order = c.get("in.order");
  // "stl" has no regulariser, whatever beta and s_lr say.
  c.number("beta");
  c.number("s_lr");
  c.flag("learn_s", true);
  c.ignore("frozen_batches");
  Run run(c, method == "stl" ? "none" : "aft", o);
  if (Tensor s = run.weights()) copy_into(s, c.get("param.prior.s"));
  run.store.source(c.parameters("student."));
  Student student(nn::Scope(run.store), c.text("arch", ""), x.dim(1), c.integer("hidden"),
                  c.integer("d_phi"), c.integer("n_classes"));
  run.store.require_complete();

  nn::Group group{{}, c.number("lr"), c.number("weight_decay")};
  for (const nn::Param& p : run.store.params())
    if (!p.buffer && !p.name.starts_with("loss.")) group.names.push_back(p.name);
  std::vector<nn::Group> groups = run.objective->groups();
  groups.push_back(group);
  nn::Optimizer optimizer(run.store, groups, optimizer_options(c.text("optimizer", "")));

  int64_t n = x.dim(0), batch = c.integer("batch_size"), every = c.integer("prior_freq", 1);
  Plan plan(c.integer("steps"), n, batch);
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
      optimizer.step(plan.schedule(epoch));
    }
  }
  c.result("ce_per_step", ce);
  c.result("reg_per_step", regulariser);
  c.result("loss_per_step", total);
  for (const nn::Param& p : run.store.params()) {
    bool prior = p.name.starts_with("loss.aft.");
    c.result("param." + (prior ? "prior." + p.name.substr(9) : "student." + p.name), p.value);
  }
  NoGrad no_grad;
  evaluate(c, "test_", student(c.get("in.test_x"), false).logits, c.get("in.test_y"));
}

}  // namespace

void add_aft(Adapters& all) {
  all["aft.kernel"] = kernel;
  all["aft.map_psi"] = map_psi;
  all["aft.loss"] = loss;
  all["aft.objective"] = objective;
  all["aft.schedule"] = schedule;
  all["aft.evaluate"] = evaluation;
  all["aft.gather_psi"] = gather_psi;
  all["aft.trajectory"] = trajectory;
}

}  // namespace pupil::verify
