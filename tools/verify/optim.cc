// optim.*: optimizers, clipping, schedules.
#include "../../nn/optim.h"

#include <nlohmann/json.hpp>

#include "case.h"

namespace pupil::verify {
namespace {

// A step whose gradients are known.
void set_gradients(const std::vector<Tensor>& parameters, const std::vector<Tensor>& gradients) {
  backward(record("verify", zeros({}, gradients[0].dtype()), parameters, [&](Backward& b) {
    for (size_t i = 0; i < gradients.size(); i++) b[int(i)].give(gradients[i].clone());
  }));
}

Tensor row(const Tensor& x, int64_t i) {  // x[i]
  Shape shape(std::span<const int64_t>(x.shape().dims + 1, size_t(x.rank() - 1)));
  return alias(x, shape, row_major_strides(shape), i * shape.numel());
}

double problem_loss(Case& c, const std::string& problem, const Tensor& w, const Tensor& b) {
  NoGrad no_grad;
  Tensor z = add(matmul(c.get("in.X"), w), b);
  if (problem == "logistic") return cross_entropy(z, c.get("in.labels")).item();
  if (problem != "quadratic") throw Unsupported("problem = " + problem);
  return 0.5 * sum(square(sub(z, c.get("in.Y")))).item() / double(z.dim(0));
}

void trajectory(Case& c, nn::OptimizerOptions options) {
  nn::Store store(0, c.dtype(), c.device());
  store.source(c.parameters());
  nn::Scope scope(store);
  std::vector<std::string> names = {"w", "b"};
  std::vector<Tensor> parameters, gradients, path;
  std::vector<nn::Group> groups;
  const nlohmann::json& settings = c.attribute("groups");
  int64_t steps = c.integer("steps");
  c.ignore("resumed_after");
  for (const std::string& name : names) {
    Tensor given = c.get("param." + name);
    parameters.push_back(scope.param(name, given.shape(), {}));
    gradients.push_back(c.get("in.grad." + name));
    Shape shape = gradients.back().shape();
    path.push_back(zeros(shape, c.dtype()));
    groups.push_back({{name}, settings.at(name).at("lr"), settings.at(name).at("weight_decay")});
  }
  std::vector<double> lr_scale(size_t(steps), 1.0), losses;
  c.ignore("lr_scale");
  if (c.has_attribute("lr_scale")) lr_scale = c.attribute("lr_scale").get<std::vector<double>>();
  std::string problem = c.text("problem", "");
  nn::Optimizer optimizer(store, groups, options);
  optimizer.load_state([&](const std::string& name) {
    bool counter = name.ends_with(".step");  // one counter for all parameters in the case
    return c.get_if(counter ? "in.state.step" : "in.state." + name);
  });
  for (int64_t t = 0; t < steps; t++) {
    losses.push_back(problem_loss(c, problem, parameters[0], parameters[1]));
    optimizer.zero_grad();
    set_gradients(parameters, {row(gradients[0], t), row(gradients[1], t)});
    optimizer.step(lr_scale.at(size_t(t)));
    for (size_t i = 0; i < names.size(); i++) copy_into(row(path[i], t), parameters[i].detach());
  }
  c.result("loss", losses);
  for (size_t i = 0; i < names.size(); i++) c.result(names[i], path[i]);
  for (auto& [name, value] : optimizer.state())
    c.result("state." + (name.ends_with(".step") ? std::string("step") : name), value);
}

void sgd(Case& c) {
  nn::OptimizerOptions o;
  o.momentum = c.number("momentum", 0);
  o.dampening = c.number("dampening", 0);
  o.nesterov = c.flag("nesterov", false);
  trajectory(c, o);
}

void adam_family(Case& c, nn::Algorithm algorithm, nn::OptimizerOptions o = {}) {
  o.algorithm = algorithm;
  std::vector<double> betas = c.attribute("betas").get<std::vector<double>>();
  o.beta1 = betas.at(0);
  o.beta2 = betas.at(1);
  o.eps = c.number("eps", 1e-8);
  c.only("amsgrad", false);
  trajectory(c, o);
}
void adam(Case& c) { adam_family(c, nn::Algorithm::adam); }
void adamw(Case& c) { adam_family(c, nn::Algorithm::adamw); }

void rmsprop(Case& c) {
  nn::OptimizerOptions o;
  o.algorithm = nn::Algorithm::rmsprop;
  o.alpha = c.number("alpha", 0.99);
  o.eps = c.number("eps", 1e-8);
  o.momentum = c.number("momentum", 0);
  o.centered = c.flag("centered", false);
  trajectory(c, o);
}

void lamb(Case& c) {
  nn::OptimizerOptions o;
  o.max_grad_norm = c.number("max_grad_norm", 0);
  o.trust_clip = c.flag("trust_clip", false);
  o.always_adapt = c.flag("always_adapt", false);
  o.grad_averaging = c.flag("grad_averaging", true);
  adam_family(c, nn::Algorithm::lamb, o);
}

void clip_grad_norm(Case& c) {
  c.only("norm_type", 2.0);
  double limit = c.number("max_norm");
  nn::Store store(0, c.dtype(), c.device());
  nn::Group group;
  std::vector<Tensor> parameters, gradients;
  for (int i = 0; c.has(concat("in.g", i)); i++) {
    gradients.push_back(c.get(concat("in.g", i)));
    group.names.push_back(concat("g", i));
    parameters.push_back(nn::Scope(store).param(group.names.back(), gradients.back().shape(), {}));
  }
  nn::Optimizer optimizer(store, {group}, {});
  set_gradients(parameters, gradients);
  c.result("total_norm", full({}, optimizer.clip_grad_norm(limit), DType::f64));
  for (size_t i = 0; i < parameters.size(); i++)
    c.result(group.names[i], parameters[i].grad().clone());
}

void ema(Case& c) {
  nn::EmaOptions o;
  o.decay = c.number("decay");
  o.min_decay = c.number("min_decay", 0);
  o.after = c.integer("update_after_step", 0);
  o.warmup = c.flag("use_warmup", false);
  o.warmup_gamma = c.number("warmup_gamma", 1);
  o.warmup_power = c.number("warmup_power", 2.0 / 3);
  Tensor weight = c.get("param.weight").clone(), path = c.get("in.weight");
  nn::Ema average({weight}, o);
  Tensor averages = zeros(path.shape(), path.dtype());
  std::vector<double> decays;
  for (int64_t t = 0; t < path.dim(0); t++) {
    copy_into(weight, row(path, t));
    decays.push_back(average.update(t + 1));
    copy_into(row(averages, t), average.averages()[0]);
  }
  c.result("decay", decays);
  c.result("ema", averages);
}

void rates(Case& c, double lr, const std::function<double(int64_t)>& schedule) {
  std::vector<double> values;
  for (int64_t t = 0; t < c.integer("steps"); t++) values.push_back(lr * schedule(t));
  c.result("lr", values);
}

void cosine(Case& c) {
  nn::Schedule s;
  s.kind = nn::Schedule::cosine;
  s.total = c.integer("T_max");
  double lr = c.number("lr");
  s.floor = c.number("eta_min", 0) / lr;
  rates(c, lr, s);
}

void multistep(Case& c) {
  nn::Schedule s;
  s.kind = nn::Schedule::multistep;
  s.milestones = c.integers("milestones");
  s.gamma = c.number("gamma", 0.1);
  rates(c, c.number("lr"), s);
}

void warmup_cosine(Case& c) {
  nn::Schedule s;
  s.kind = nn::Schedule::cosine;
  s.warmup = c.integer("num_warmup_steps");
  s.total = c.integer("num_training_steps");
  s.cycles = c.number("num_cycles", 0.5);
  rates(c, c.number("lr"), s);
}

void warmup_linear(Case& c) {
  nn::Schedule s;
  s.kind = nn::Schedule::linear;
  s.warmup = c.integer("num_warmup_steps");
  s.total = c.integer("num_training_steps");
  rates(c, c.number("lr"), s);
}

void cosine_timm(Case& c) {
  double lr = c.number("lr");
  nn::CosineCycles s;
  s.length = c.number("t_initial");
  s.length_factor = c.number("cycle_mul", 1);
  s.peak_factor = c.number("cycle_decay", 1);
  s.limit = c.integer("cycle_limit", 1);
  s.power = c.number("k_decay", 1);
  s.floor = c.number("lr_min", 0) / lr;
  s.warmup = c.integer("warmup_t", 0);
  s.warmup_start = c.number("warmup_lr_init", 0) / lr;
  s.after_warmup = c.flag("warmup_prefix", false);
  rates(c, lr, s);
}

void one_cycle(Case& c) {
  nn::OneCycle s;
  s.total = c.integer("total_steps");
  s.rise = c.number("pct_start", 0.3);
  s.start = 1 / c.number("div_factor", 25);
  s.end = 1 / c.number("final_div_factor", 1e4);
  s.three_phase = c.flag("three_phase", false);
  std::string way = c.text("anneal_strategy", "cos");
  if (way != "cos" && way != "linear") throw Unsupported("anneal_strategy = " + way);
  s.cosine = way == "cos";
  s.low_momentum = c.number("base_momentum", 0.85);
  s.high_momentum = c.number("max_momentum", 0.95);
  rates(c, c.number("max_lr"), s);
  if (!c.flag("cycle_momentum", true)) return;
  std::vector<double> momentum;
  for (int64_t t = 0; t < c.integer("steps"); t++) momentum.push_back(s.momentum(t));
  c.result("momentum", momentum);
}

void warmup_constant(Case& c) {
  nn::Schedule s;
  s.warmup = c.integer("num_warmup_steps");
  rates(c, c.number("lr"), s);
}

// The schedules below are multistep or warm-up in other words.
nn::Schedule every(int64_t step, int64_t steps, double gamma) {
  nn::Schedule s;
  s.kind = nn::Schedule::multistep;
  for (int64_t t = step; t < steps; t += step) s.milestones.push_back(t);
  s.gamma = gamma;
  return s;
}

void step(Case& c) {
  rates(c, c.number("lr"), every(c.integer("step_size"), c.integer("steps"), c.number("gamma")));
}

void exponential(Case& c) {
  rates(c, c.number("lr"), every(1, c.integer("steps"), c.number("gamma")));
}

void constant(Case& c) {  // lr * factor until total_iters, then lr
  double factor = c.number("factor");
  if (factor == 0) throw Unsupported("factor = 0");
  nn::Schedule s;
  s.kind = nn::Schedule::multistep;
  s.milestones = {c.integer("total_iters")};
  s.gamma = 1 / factor;
  rates(c, c.number("lr") * factor, s);
}

void linear_warmup(Case& c) {
  double end = c.number("end_factor", 1);
  if (end == 0) throw Unsupported("end_factor = 0");
  nn::Schedule s;
  s.warmup = c.integer("total_iters");
  s.warmup_start = c.number("start_factor") / end;
  rates(c, c.number("lr") * end, s);
}

// timm: the steps of the schedule proper count from the end of the warm-up only with warmup_prefix.
void timm_rates(Case& c, nn::Schedule s) {
  s.gamma = c.number("decay_rate");
  s.warmup = c.integer("warmup_t", 0);
  s.warmup_start = c.number("warmup_lr_init", 0) / c.number("lr");
  if (!c.flag("warmup_prefix", true))
    for (int64_t& milestone : s.milestones) milestone -= s.warmup;
  rates(c, c.number("lr"), s);
}

void multistep_timm(Case& c) {
  nn::Schedule s;
  s.kind = nn::Schedule::multistep;
  s.milestones = c.integers("decay_t");
  for (int64_t& milestone : s.milestones) milestone--;  // one step earlier than torch
  timm_rates(c, s);
}

void step_timm(Case& c) { timm_rates(c, every(c.integer("decay_t"), c.integer("steps"), 1)); }

}  // namespace

void add_optim(Adapters& all) {
  all["optim.sgd"] = sgd;
  all["optim.adam"] = adam;
  all["optim.adamw"] = adamw;
  all["optim.rmsprop"] = rmsprop;
  all["optim.lamb"] = lamb;
  all["optim.clip_grad_norm"] = clip_grad_norm;
  all["optim.ema"] = ema;
  all["optim.schedule.cosine"] = cosine;
  all["optim.schedule.multistep"] = multistep;
  all["optim.schedule.warmup_cosine"] = warmup_cosine;
  all["optim.schedule.warmup_constant"] = warmup_constant;
  all["optim.schedule.warmup_linear"] = warmup_linear;
  all["optim.schedule.cosine_timm"] = cosine_timm;
  all["optim.schedule.one_cycle"] = one_cycle;
  all["optim.schedule.constant"] = constant;
  all["optim.schedule.step"] = step;
  all["optim.schedule.exponential"] = exponential;
  all["optim.schedule.linear"] = linear_warmup;
  all["optim.schedule.multistep_timm"] = multistep_timm;
  all["optim.schedule.step_timm"] = step_timm;
}

}  // namespace pupil::verify
