// lora.*: low-rank changes of frozen layers.
#include "../../nn/nn.h"
#include "case.h"

namespace pupil::verify {
namespace {

// The layer with the case's values, whose A and B alone ask for gradients.
template <class Layer>
void fill(Case& c, nn::Store& store, const Layer& layer) {
  store.require_complete();
  c.track("lora_A", layer.a);
  c.track("lora_B", layer.b);
  c.result("merged_weight", layer.merged());
}

void lora_linear(Case& c) {
  nn::Store store(0, c.dtype(), c.device());
  store.source(c.parameters());
  Shape weight = c.get("param.weight").shape();
  nn::Scope root(store);
  nn::Linear base(root, weight[1], weight[0], c.has("param.bias"));
  double rank = double(c.integer("r")), alpha = c.number("alpha");
  if (c.flag("rslora", false)) alpha *= std::sqrt(rank);
  nn::LoraLinear layer(root, base, c.integer("r"), alpha);
  fill(c, store, layer);
  Tensor x = c.get("in.x"), mask = c.get_if("in.dropout_mask");
  c.result("y", add(base(x), layer.change(mask ? dropout(x, c.number("dropout"), mask) : x)));
}

void lora_conv2d(Case& c) {
  c.only("form", std::string("peft"));
  nn::Store store(0, c.dtype(), c.device());
  store.source(c.parameters());
  Shape weight = c.get("param.weight").shape();
  ConvOptions o{.stride = int(c.both("stride")),
                .padding = int(c.both("padding")),
                .dilation = int(c.both("dilation")),
                .groups = int(c.integer("groups", 1))};
  nn::Scope root(store);
  nn::Conv2d base(root, weight[1] * o.groups, weight[0], int(weight[2]), o, c.has("param.bias"),
                  {});
  nn::LoraConv2d layer(root, base, c.integer("r"), c.number("alpha"));
  fill(c, store, layer);
  c.result("y", layer(c.get("in.x")));
}

void init(Case& c) {
  c.only("scheme", std::string("kaiming"));
  nn::Store store = nn::Store::blueprint();
  nn::Scope root(store);
  int64_t in = c.integer("in"), out = c.integer("out"), rank = c.integer("r");
  auto answer = [&](const Tensor& a, const Tensor& b) {
    double bound = nn::fan_in_uniform(a.numel() / rank).a;
    auto dims = [](const Tensor& t) {
      return from(std::span<const int64_t>(t.shape().dims, size_t(t.rank())), {t.rank()});
    };
    c.result("a_shape", dims(a));
    c.result("b_shape", dims(b));
    c.result("a_bound", full({}, bound, DType::f64));
    c.result("a_std", full({}, bound / std::sqrt(3.0), DType::f64));
  };
  int64_t kernel = c.integer("kernel", 1);
  if (c.text("layer", "linear") == "linear") {
    nn::LoraLinear layer(root, nn::Linear(root, in, out), rank, 1);
    answer(layer.a, layer.b);
  } else {
    nn::LoraConv2d layer(root, nn::Conv2d(root, in, out, int(kernel), {}, false, {}), rank, 1);
    answer(layer.a, layer.b);
  }
}

}  // namespace

void add_lora(Adapters& all) {
  all["lora.linear"] = lora_linear;
  all["lora.conv2d"] = lora_conv2d;
  all["lora.init"] = init;
}

}  // namespace pupil::verify
