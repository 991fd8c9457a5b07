// transmiter.*, clip.zero_shot_*, eft.*, fusion.*, metrics.*, tip_adapter.*, linear_probe.*.
#include "../../methods/transmiter.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "../../data/clip_tokenizer.h"
#include "../../data/python_random.h"
#include "../../methods/auxiliary_classes.h"
#include "../../methods/eft.h"
#include "../../methods/kd.h"
#include "../../methods/linear_probe.h"
#include "../../methods/procrustes.h"
#include "../../methods/tip_adapter.h"
#include "../../methods/zero_shot.h"
#include "case.h"

namespace pupil::verify {
namespace {

using methods::Adapter;
using methods::Basis;

constexpr const char* kFreeWeight = "network.0.in_proj.weight";

// The adapter of a case with its parameters in a store.
struct Model {
  nn::Store store;
  std::optional<Adapter> adapter;

  explicit Model(Case& c) : store(0, c.dtype(), c.device()) {
    methods::AdapterOptions o;
    bool free = c.has(std::string("param.") + kFreeWeight);
    o.basis = free ? Basis::free : Basis::expm;
    Shape basis = c.get(free ? std::string("param.") + kFreeWeight
                             : "param.network.0.in_proj.parametrizations.weight.original")
                      .shape();
    o.latent = basis[0];
    o.logits = basis[1];
    o.hidden = c.get("param.network.0.mlp_layers.0.1.bias").dim(0);
    o.alpha = c.number("alpha", 1);
    store.source(c.parameters());
    adapter.emplace(nn::Scope(store), o);
    store.require_complete();
  }

  void track(Case& c) {
    for (nn::Param& p : store.params())
      if (!p.buffer) c.track(p.name, p.value);
  }
  void give_state(Case& c) {
    for (nn::Param& p : store.params())
      if (!p.buffer) c.result("state." + p.name, p.value.detach());
  }
};

Tensor task_columns(const Tensor& z, int64_t classes) {
  return slice(z, 1, 0, classes).contiguous();
}

void standardise(Case& c) {
  auto s = methods::standardize_logits(c.get("in.logits"), 1e-6);
  c.result("x", s.values);
  c.result("mean", view(s.mean, {s.mean.dim(0)}));
  c.result("std", view(s.deviation, {s.mean.dim(0)}));
}

void noise(Case& c) {
  c.result("logits", methods::logit_noise(c.get("in.logits"), c.get("in.normal"), c.number("u"),
                                          c.number("alpha", 0.5)));
}

void adapter(Case& c) {
  Model model(c);
  model.track(c);
  c.ignore("num_task");
  c.result("logits", (*model.adapter)(c.get("in.logits")));
}

methods::ExtractionLossOptions loss_options(Case& c) {
  return {c.number("temperature", 1), c.number("teacher_temperature", 0.5), c.number("coef", 1),
          c.number("mse_coef", 0)};
}

void extract_loss(Case& c) {
  Tensor pred = c.get("in.pred"), teacher = c.constant("in.teacher");
  int64_t columns =
      c.flag("all_logits", false) ? pred.dim(1) : c.integer("num_task", teacher.dim(1));
  c.ignore("num_task");
  PUPIL_CHECK(teacher.dim(1) == columns, "extract_loss: teacher ", teacher.shape(), ", ", columns,
              " columns");
  c.result("loss", methods::extraction_loss(pred, teacher, loss_options(c)));
}

void combine_teachers(Case& c) {
  c.result("logits",
           methods::combine_teachers(c.get("in.teachers"), c.flag("confidence_weighted", false)));
}

void schedule(Case& c) {
  std::vector<double> lr;
  for (int64_t k = 0; k < c.integer("total"); k++)
    lr.push_back(c.number("lr") *
                 methods::warmup_cosine(k, c.number("warmup"), c.integer("total")));
  c.result("lr", lr);
}

// Every epoch visits the batches in the stored order.
methods::Batches stored_batches(Case& c) {
  std::vector<int64_t> sizes = c.integers("batch_sizes");
  return [sizes](int64_t) {
    std::vector<Tensor> batches;
    int64_t row = 0;
    for (int64_t size : sizes) {
      Tensor rows = zeros({size}, DType::i64);
      for (int64_t i = 0; i < size; i++) rows.data<int64_t>()[i] = row++;
      batches.push_back(rows);
    }
    return batches;
  };
}

Tensor case_loss(Case& c, const Model& model) {
  return methods::extraction_loss((*model.adapter)(c.get("in.logits")), c.get("in.teacher"),
                                  loss_options(c));
}

// The gradients are those of a model that the step does not move.
void train_step(Case& c) {
  Model still(c), moved(c);
  still.track(c);
  c.ignore("num_task");
  c.ignore("batch_sizes");
  c.result("loss", case_loss(c, still));
  nn::Group group{{}, c.number("lr"), c.number("weight_decay")};
  for (const nn::Param& p : moved.store.params())
    if (!p.buffer) group.names.push_back(p.name);
  nn::OptimizerOptions adamw;
  adamw.algorithm = nn::Algorithm::adamw;
  nn::Optimizer optimizer(moved.store, {group}, adamw);
  optimizer.zero_grad();
  backward(case_loss(c, moved));
  optimizer.step();
  moved.give_state(c);
}

void give_curve(Case& c, Model& model, const methods::Curve& curve) {
  c.result("loss", curve.loss);
  c.result("lr", curve.lr);
  model.give_state(c);
  NoGrad no_grad;
  c.result("probe", (*model.adapter)(c.get("in.probe")));
}

void trajectory(Case& c) {
  Model model(c);
  c.ignore("num_task");
  methods::ExtractionOptions o;
  o.loss = loss_options(c);
  o.noise = 0;
  o.lr = c.number("lr");
  o.weight_decay = c.number("weight_decay");
  o.epochs = c.integer("epochs");
  methods::Curve curve = methods::extract(model.store, *model.adapter, c.get("in.logits"),
                                          c.get("in.teacher"), o, stored_batches(c));
  give_curve(c, model, curve);
}

void plus_trajectory(Case& c) {
  Model model(c);
  methods::PolishOptions o;
  o.lr = c.number("lr", o.lr);
  o.weight_decay = c.number("weight_decay", o.weight_decay);
  o.epochs = c.integer("epochs");
  c.ignore("classes");
  if (c.has_attribute("classes")) o.columns = c.integers("classes");
  if (!c.flag("train_projection", true)) {
    model.store.freeze("network.0.in_proj.*");
    if (model.adapter->options().basis == Basis::free)
      model.store.freeze("network.0.transfer_out_proj.*");
  }
  methods::Curve curve =
      methods::polish(model.store, *model.adapter, c.get("in.logits"), c.get("in.labels"),
                      c.integer("num_task"), o, stored_batches(c));
  give_curve(c, model, curve);
}

methods::ProcrustesOptions procrustes_options(Case& c) {
  methods::ProcrustesOptions o;
  o.beta = c.number("beta");
  o.rotation = c.flag("rotation", false);
  o.truncate_ratio = c.number("truncate_ratio", -1);
  return o;
}

void procrustes(Case& c) {
  Tensor source = c.get("in.source"), w = c.get("in.w");
  methods::Procrustes problem(source.dim(1));
  problem.add(c.get("in.target"), source);
  Tensor r = problem.solve(procrustes_options(c));
  c.result("rotation", r.to(c.dtype()));
  c.result("w", matmul(r, w.to(DType::f64), true).to(c.dtype()));
}

void transfer(Case& c) {
  Model model(c);
  NoGrad no_grad;
  Tensor r = methods::logit_rotation(c.get("in.source_logits"), c.get("in.target_logits"),
                                     procrustes_options(c));
  nn::Store other(0, c.dtype(), c.device());
  Adapter moved = model.adapter->rotated(nn::Scope(other), r, Basis::free);
  Tensor logits = c.get("in.logits");
  c.result("w", moved.basis().detach());
  c.result("logits", task_columns(moved(logits), c.integer("num_task")));
  c.result("naive", task_columns((*model.adapter)(logits), c.integer("num_task")));
}

std::vector<double> numbers(const std::vector<int64_t>& values) {
  return {values.begin(), values.end()};
}

void sample_indices(Case& c) {
  data::PythonRandom random(uint64_t(c.integer("seed")));
  c.result("indices", numbers(random.sample(c.integer("n"), c.integer("k"))));
}

void auxiliary_classes(Case& c) {
  methods::AuxiliaryRequest r;
  try {
    r.strategy = methods::auxiliary_strategy_named(c.text("strategy", "random"));
  } catch (const InputError& error) {
    throw Unsupported(error.what());
  }
  r.count = c.integer("count");
  r.seed = uint64_t(c.integer("seed", 1));
  r.task_embeddings = c.get_if("in.task_embeddings");
  r.word_embeddings = c.get_if("in.word_embeddings");
  r.features = c.get_if("in.features");
  auto pool = c.attribute("pool").get<std::vector<std::string>>();
  auto task = c.attribute("task").get<std::vector<std::string>>();
  c.result("pool_index", numbers(methods::auxiliary_classes(pool, task, r)));
}

void eft(Case& c) {
  methods::LogitMode mode;
  try {
    mode = methods::logit_mode_named(c.text("mode", "proxy"));
  } catch (const InputError& error) {
    throw Unsupported(error.what());
  }
  c.result("logits", methods::eft_logits(c.get_if("in.weak_pt"), c.get("in.weak_ft"),
                                         c.get_if("in.strong_pt"), mode, c.number("alpha", 1),
                                         c.flag("log_softmax", true)));
}

void base_novel(Case& c) {
  std::vector<int64_t> base = c.integers("base"), novel = c.integers("novel");
  methods::BaseNovel r =
      methods::base_to_novel(c.get("in.logits"), c.get("in.labels"), base, novel);
  auto scalar = [](std::optional<double> x) { return full({}, x.value_or(NAN), DType::f64); };
  c.result("base", scalar(r.base));
  c.result("novel", scalar(r.novel));
  c.result("hm", scalar(r.harmonic_mean));
}

void top_k(Case& c) {
  std::vector<int64_t> k = c.integers("k");
  c.result("accuracy", methods::top_k(c.get("in.logits"), c.get("in.labels"), k));
}

// Beside the case or in data/clip of a folder above it, of $PUPIL_SHARED or of ../shared.
std::string find_vocabulary(const Case& c) {
  namespace fs = std::filesystem;
  const char* name = "bpe_simple_vocab_16e6.txt.gz";
  const char* shared = std::getenv("PUPIL_SHARED");
  fs::path folder = fs::absolute(c.path()).parent_path();
  std::vector<fs::path> places{folder / name,
                               fs::path(shared ? shared : "../shared") / "data/clip" / name};
  for (; folder != folder.root_path(); folder = folder.parent_path())
    places.push_back(folder / "data/clip" / name);
  for (const fs::path& place : places)
    if (fs::exists(place)) return place.string();
  throw Unsupported(concat("no ", name, " beside the case or in data/clip of a folder above it"));
}

void prompt_tokens(Case& c) {
  std::string prompt = c.text("template", "");
  std::vector<std::string> texts;
  for (const nlohmann::json& name : c.attribute("names"))
    texts.push_back(methods::fill_template(prompt, name.get<std::string>()));
  c.result("tokens", data::ClipTokenizer(find_vocabulary(c)).tokens(texts));
}

void zero_shot_head(Case& c) {
  c.result("head", methods::zero_shot_head(c.get("in.text"), c.number("logit_scale"),
                                           c.get_if("in.aux_text")));
}

void zero_shot_logits(Case& c) {
  c.result("logits", methods::zero_shot_logits(c.get("in.features"), c.get("in.head")));
}

void tip_adapter(Case& c) {
  methods::TipAdapterOptions o;
  o.alpha = c.number("alpha");
  o.beta = c.number("beta");
  c.result("logits", methods::tip_adapter_logits(c.get("in.features"), c.get("in.keys"),
                                                 c.get("in.values"), c.get("in.head"), o));
}

void linear_probe(Case& c) {
  methods::LinearProbeOptions o;
  o.c = c.number("C");
  o.tolerance = 1e-12;
  methods::LinearProbe probe = methods::fit_linear_probe(c.get("in.features"), c.get("in.labels"),
                                                         c.integer("num_classes"), o);
  Tensor test = c.get("in.test").to(DType::f64);
  c.result("weight", probe.weight);
  c.result("bias", probe.bias);
  c.result("objective", full({}, probe.objective, DType::f64));
  c.result("logits", linear(test, probe.weight, probe.bias));
}

}  // namespace

void add_transmiter(Adapters& all) {
  all["transmiter.standardise"] = standardise;
  all["transmiter.noise"] = noise;
  all["transmiter.adapter"] = adapter;
  all["transmiter.extract_loss"] = extract_loss;
  all["transmiter.combine_teachers"] = combine_teachers;
  all["transmiter.schedule"] = schedule;
  all["transmiter.train_step"] = train_step;
  all["transmiter.trajectory"] = trajectory;
  all["transmiter.plus_trajectory"] = plus_trajectory;
  all["transmiter.procrustes"] = procrustes;
  all["transmiter.transfer"] = transfer;
  all["transmiter.sample_indices"] = sample_indices;
  all["transmiter.auxiliary_classes"] = auxiliary_classes;
  all["eft.logits"] = eft;
  all["metrics.base_novel"] = base_novel;
  all["metrics.topk"] = top_k;
  all["clip.prompt_tokens"] = prompt_tokens;
  all["clip.zero_shot_head"] = zero_shot_head;
  all["clip.zero_shot_logits"] = zero_shot_logits;
  all["tip_adapter.logits"] = tip_adapter;
  all["linear_probe.fit"] = linear_probe;
}

}  // namespace pupil::verify
