// aft.*: ablations and baselines.
#include "../../methods/baselines.h"
#include "aft.h"

namespace pupil::verify {
namespace {

// A method whose case asks for beta * R and its gradients.
void method(Case& c, const std::string& name) {
  Tensor phi = c.get("in.phi"), psi = c.constant("in.psi");
  methods::AftOptions o = aft_options(c, psi.dim(-1));
  int64_t classes = name == "btuning" ? c.get("in.mu_student").dim(0) : 0;
  AftRun run(c, name, o, phi.dim(1), classes);
  run.start("");
  c.result("loss", run.regulariser(phi, psi));
  NoGrad no_grad;
  auto layer = [&](const Tensor& x, const std::string& at) {
    std::string path = concat("loss.", name, ".proj.", at);
    return linear(x, run.store.find(path + "weight")->value, run.store.find(path + "bias")->value);
  };
  if (name == "kernel_kd") c.result("delta", methods::aft_delta(layer(phi, ""), psi, {}));
  if (name == "ft") c.result("pred", layer(relu(layer(relu(layer(phi, "0.")), "2.")), "4."));
  if (name == "rkd") {
    c.result("dist", methods::rkd_distance_plain(phi, psi));
    c.result("angle", methods::rkd_angle_plain(phi, psi));
  }
  if (name == "btuning")
    c.result("weights",
             methods::btuning_weights(c.get("in.scores").values(), c.number("temperature", 0.1)));
}

nn::Linear linear_of(Case& c, const std::string& name) {
  Tensor weight = c.get("param." + name + ".weight");
  nn::Store store(0, c.dtype());
  nn::Linear layer(nn::Scope(store), weight.dim(1), weight.dim(0));
  layer.weight = weight;
  layer.bias = c.get("param." + name + ".bias");
  return layer;
}

void kd_feature(Case& c) {
  int64_t modalities = c.integer("modalities", 1);
  if (modalities == 1) return method(c, "kd_feature");
  c.ignore("feat_dims");  // the maps have these widths
  std::vector<Tensor> phi;
  std::vector<nn::Linear> maps;
  for (int64_t m = 0; m < modalities; m++) {
    phi.push_back(c.get(concat("in.phi.", m)));
    maps.push_back(linear_of(c, concat("proj.", m)));
  }
  c.result("loss", scale(methods::kd_feature_loss(cat(phi, 1), c.constant("in.psi"), maps),
                         c.number("beta", 10)));
}

struct Coder {
  nn::Store store;
  methods::Autoencoder net;
  Coder(Case& c, int64_t width) : store(0, c.dtype()), net(nn::Scope(store), width) {
    for (const nn::Param& p : store.params()) {
      copy_into(p.value, c.get("param." + p.name).detach());
      c.track(p.name, p.value);
    }
  }
};

void autoencoder(Case& c) {
  Tensor x = c.get("in.x");
  Coder coder(c, x.dim(1));
  Tensor code = coder.net.encode(x), recon = coder.net.decode(code);
  c.result("code", code);
  c.result("recon", recon);
  c.result("loss", mean(square(sub(recon, x))));
}

void autoencoder_fit(Case& c) {
  Tensor rows = c.get("in.train"), held_out = c.get("in.test");
  Coder coder(c, rows.dim(1));
  methods::AutoencoderOptions o;
  o.epochs = c.integer("epochs", o.epochs);
  o.batch = c.integer("batch_size", o.batch);
  o.patience = c.integer("patience", o.patience);
  o.lr = c.number("lr", o.lr);
  methods::AutoencoderFit fit = methods::fit_autoencoder(coder.store, coder.net, rows, held_out, o);
  NoGrad no_grad;
  for (const nn::Param& p : coder.store.params()) c.result("param." + p.name, p.value);
  c.result("train_code", coder.net.encode(rows));
  c.result("test_code", coder.net.encode(held_out));
  c.result("best_test_loss", full({}, fit.best_loss, DType::f64));
  c.result("epochs_run", {double(fit.epochs)});
}

void logme(Case& c) {
  methods::LogMe result = methods::logme(c.get("in.features"), c.get("in.labels"));
  c.result("score", full({}, result.score, DType::f64));
  c.result("mu", result.weights);
  c.result("alpha", result.alpha);
  c.result("beta", result.beta);
}

}  // namespace

void add_aft_baselines(Adapters& all) {
  all["aft.no_kernel_loss"] = [](Case& c) { method(c, "aft_no_kernel"); };
  all["aft.kernel_kd_loss"] = [](Case& c) { method(c, "kernel_kd"); };
  all["aft.kd_feature_loss"] = kd_feature;
  all["aft.rkd_loss"] = [](Case& c) { method(c, "rkd"); };
  all["aft.ft_loss"] = [](Case& c) { method(c, "ft"); };
  all["aft.ft_autoencoder"] = autoencoder;
  all["aft.ft_autoencoder_fit"] = autoencoder_fit;
  all["aft.logme"] = logme;
  all["aft.btuning_loss"] = [](Case& c) { method(c, "btuning"); };
}

}  // namespace pupil::verify
