// aft.*: the method step by step and its objective.
#include "aft.h"

#include <algorithm>

#include "../../methods/baselines.h"

namespace pupil::verify {

methods::AftOptions aft_options(Case& c, int64_t width) {
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

AftRun::AftRun(Case& c, const std::string& name, methods::AftOptions o, int64_t student_width,
               int64_t classes)
    : store(0, c.dtype(), c.device()), c_(c) {
  std::string method = name == "stl" ? "none" : name;
  if (name == "aft_dense") o.map = methods::AftMap::dense;
  if (name == "aft_rbf") o.kernel = methods::AftKernel::rbf;
  if (name == "aft_dense" || name == "aft_rbf") method = "aft";
  prefix_ = "loss." + method + ".";
  methods::Setup setup;
  setup.classes = classes;
  setup.student_width = student_width;
  setup.teacher_widths = o.teacher_widths;
  setup.lr = c.number("s_lr", 1e-2);  // of maps that train like the student
  double beta = c.number("beta", 10);
  bool learn_s = c.flag("learn_s", true);
  if (method == "ft") {  // the cases give the factors themselves, so there is no stage 1
    nn::Scope scope = nn::Scope(store) / "loss" / "ft";
    methods::Translator translator(scope / "proj", student_width, methods::total_width(setup));
    groups_.push_back(methods::own_group(scope, setup.lr));
    factors_ = [translator, beta](const Tensor& phi, const Tensor& factors) {
      return scale(methods::factor_transfer_loss(translator(phi), factors), beta);
    };
    return;
  }
  methods::Choice choice{method, {}, {}};
  if (method != "none") choice.options.emplace_back("beta", beta);
  if (method == "aft") {
    choice.options.emplace_back("kernel", o.kernel == methods::AftKernel::rbf ? "rbf" : "linear");
    choice.options.emplace_back("map", o.map == methods::AftMap::dense     ? "dense"
                                       : o.map == methods::AftMap::product ? "product"
                                                                           : "diag");
    choice.options.emplace_back("learn_s", learn_s);
  }
  if (method == "aft" || method == "aft_no_kernel" || method == "kernel_kd")
    choice.options.emplace_back("s_lr", setup.lr);
  if (method == "btuning") choice.options.emplace_back("temperature", c.number("temperature", 0.1));
  try {
    objective_.emplace(std::vector{choice}, nn::Scope(store), setup);
  } catch (const InputError& error) {
    throw Unsupported(error.what());
  }
  groups_ = objective_->groups();
}

std::string AftRun::own_name(const std::string& parameter) const {
  return parameter.starts_with(prefix_) ? parameter.substr(prefix_.size()) : "";
}

void AftRun::start(const std::string& prefix) {
  for (const nn::Param& p : store.params()) {
    std::string own = own_name(p.name);
    // B-Tuning's buffers are given as inputs; weights that do not learn are parameters all the
    // same.
    std::string from = p.buffer && own != "s" ? "in." + own : concat("param.", prefix, own);
    copy_into(p.value, c_.get(from).detach());
    if (!p.buffer) c_.track(prefix + own, p.value);
  }
}

methods::Loss AftRun::loss(const models::Output& student, const Tensor& psi,
                           const Tensor& labels) const {
  methods::Batch batch;
  batch.labels = labels;
  methods::Teacher teacher;
  teacher.name = "psi";
  teacher.features = psi;
  nn::Taps taps;
  if (objective_) return (*objective_)(methods::Step{batch, student, taps, {&teacher, 1}, {}});
  methods::Loss loss;
  loss.parts = {{"ce", 1, cross_entropy(student.logits, labels)},
                {"ft", 1, factors_(student.features, psi)}};
  loss.total = add(loss.parts[0].value, loss.parts[1].value);
  return loss;
}

Tensor AftRun::regulariser(const Tensor& phi, const Tensor& psi) const {
  if (factors_) return factors_(phi, psi);
  methods::Batch batch;
  std::vector<methods::Teacher> teachers;
  teachers.push_back({"psi", {}, psi, {}});
  nn::Taps taps;
  models::Output student{Tensor(), phi};
  return objective_->terms().at(0).instance.loss(methods::Step{batch, student, taps, teachers, {}});
}

namespace {

void kernel(Case& c) {
  methods::AftOptions o = aft_options(c);
  c.result("k", methods::aft_kernel(c.get("in.x"), o.kernel));
}

void map_psi(Case& c) {
  Tensor psi = c.get("in.psi");
  methods::AftOptions o = aft_options(c, psi.dim(-1));
  c.result("t", methods::aft_map(psi, c.get("param.s"), o));
}

// beta * delta, as the method gives it to the objective.
void loss(Case& c) {
  Tensor phi = c.get("in.phi"), psi = c.constant("in.psi");
  methods::AftOptions o = aft_options(c, psi.dim(-1));
  AftRun run(c, "aft", o, phi.dim(1));
  run.start("");
  c.result("loss", run.regulariser(phi, psi));
  NoGrad no_grad;
  Tensor s = run.store.find("loss.aft.s")->value;
  c.result("delta", methods::aft_delta(phi, psi, s, o));
  c.result("k", methods::aft_kernel(phi, o.kernel));
  c.result("k_target", methods::aft_kernel(methods::aft_map(psi, s, o), o.kernel));
}

void objective(Case& c) {
  Tensor phi = c.get("in.phi"), psi = c.constant("in.psi");
  methods::AftOptions o = aft_options(c, psi.dim(-1));
  AftRun run(c, "aft", o, phi.dim(1));
  run.start("");
  Tensor logits = linear(phi, c.get("param.head.weight"), c.get("param.head.bias"));
  methods::Loss loss = run.loss({logits, phi}, psi, c.get("in.labels"));
  c.result("loss", loss.total);
  c.result("ce", loss.parts[0].value);
  NoGrad no_grad;
  c.result("delta", methods::aft_delta(phi, psi, run.store.find("loss.aft.s")->value, o));
}

}  // namespace

void add_aft(Adapters& all) {
  all["aft.kernel"] = kernel;
  all["aft.map_psi"] = map_psi;
  all["aft.loss"] = loss;
  all["aft.objective"] = objective;
  add_aft_baselines(all);
  add_aft_training(all);
}

}  // namespace pupil::verify
