// ops.*: the functions of tensor/ops.h.
#include "../../tensor/ops.h"

#include <algorithm>

#include "../../tensor/random.h"
#include "case.h"

namespace pupil::verify {
namespace {

template <Tensor (*f)(const Tensor&)>
void elementwise(Case& c) {
  c.result("y", f(c.get("in.x")));
}

template <Tensor (*f)(const Tensor&, const Tensor&)>
void binary(Case& c) {
  c.result("y", f(c.get("in.a"), c.get("in.b")));
}

std::vector<int> axes_of(Case& c, const std::string& name) {
  std::vector<int> axes;
  c.ignore(name);
  if (c.has_attribute(name))
    for (int64_t d : c.integers(name)) axes.push_back(int(d));
  return axes;
}

template <Tensor (*f)(const Tensor&, std::vector<int>, bool)>
void reduction(Case& c) {
  std::vector<int> axes = axes_of(c, "dim");
  c.result("y", f(c.get("in.x"), axes, c.flag("keepdim", false)));
}

template <Tensor (*f)(const Tensor&, std::vector<int>, double, bool)>
void moment(Case& c) {
  std::vector<int> axes = axes_of(c, "dim");
  double correction = c.number("correction", 1);
  c.result("y", f(c.get("in.x"), axes, correction, c.flag("keepdim", false)));
}

void cumsum_case(Case& c) { c.result("y", cumsum(c.get("in.x"), int(c.integer("dim")))); }

// f works along the last axis; other axes are moved there and back.
template <class F>
Tensor along(const Tensor& x, int64_t dim, F&& f) {
  int axis = int(dim < 0 ? dim + x.rank() : dim);
  if (axis == x.rank() - 1) return f(x);
  std::vector<int> order;
  for (int d = 0; d < x.rank(); d++) order.push_back(d);
  std::swap(order[size_t(axis)], order.back());
  return permute(f(permute(x, order)), order);
}

template <Tensor (*f)(const Tensor&, double)>
void softmax_family(Case& c) {
  double temperature = c.number("temperature", 1);
  c.result("y", along(c.get("in.x"), c.integer("dim"),
                      [&](const Tensor& x) { return f(x, temperature); }));
}

void gelu_case(Case& c) {
  std::string form = c.text("approximate", "none");
  if (form != "none" && form != "tanh") throw Unsupported("approximate = " + form);
  c.result("y", gelu(c.get("in.x"), form == "tanh"));
}

void leaky_relu_case(Case& c) {
  double slope = c.number("negative_slope", 0.01);
  c.result("y", leaky_relu(c.get("in.x"), slope));
}

void pow_case(Case& c) { c.result("y", pow(c.get("in.x"), c.number("exponent"))); }

void where_case(Case& c) { c.result("y", where(c.get("in.cond"), c.get("in.a"), c.get("in.b"))); }

void clamp_case(Case& c) {
  double low = c.number("min", -INFINITY), high = c.number("max", INFINITY);
  c.result("y", clamp(c.get("in.x"), low, high));
}

Pair pair(Case& c, const std::string& name, int otherwise) {
  c.ignore(name);
  if (!c.has_attribute(name)) return otherwise;
  std::vector<int64_t> values = c.integers(name);
  return {int(values.front()), int(values.back())};
}

ConvOptions conv_options(Case& c) {
  ConvOptions o;
  o.stride = pair(c, "stride", 1);
  o.padding = pair(c, "padding", 0);
  o.dilation = pair(c, "dilation", 1);
  o.groups = int(c.integer("groups", 1));
  return o;
}

void conv2d_case(Case& c) {
  ConvOptions o = conv_options(c);
  c.result("y",
           to_strided(conv2d(c.get("in.x"), c.get("param.weight"), c.get_if("param.bias"), o)));
}

template <Tensor (*f)(const Tensor&, const PoolOptions&)>
void pool(Case& c) {
  PoolOptions o;
  o.kernel = pair(c, "kernel", 2);
  o.stride = pair(c, "stride", 2);
  o.padding = pair(c, "padding", 0);
  o.dilation = pair(c, "dilation", 1);
  o.ceil_mode = c.flag("ceil_mode", false);
  o.count_include_pad = c.flag("count_include_pad", true);
  c.result("y", to_strided(f(c.get("in.x"), o)));
}

template <Tensor (*f)(const Tensor&, Pair)>
void adaptive_pool(Case& c) {
  Pair cells = pair(c, "output_size", 1);
  c.result("y", f(c.get("in.x"), cells));
}

void conv_transpose2d_case(Case& c) {
  ConvOptions o = conv_options(c);
  Pair extra = pair(c, "output_padding", 0);
  c.result("y", conv_transpose2d(c.get("in.x"), c.get("param.weight"), c.get_if("param.bias"), o,
                                 extra));
}

WindowOptions window_options(Case& c) {
  return {.kernel = pair(c, "kernel", 1),
          .dilation = pair(c, "dilation", 1),
          .padding = pair(c, "padding", 0),
          .stride = pair(c, "stride", 1)};
}

void unfold_case(Case& c) {
  WindowOptions o = window_options(c);
  c.result("y", unfold(c.get("in.x"), o));
}

void fold_case(Case& c) {
  WindowOptions o = window_options(c);
  Pair size = pair(c, "output_size", 0);
  c.result("y", fold(c.get("in.x"), size, o));
}

void pixel_shuffle_case(Case& c) {
  int r = int(c.integer("r"));
  Tensor x = c.get("in.x");
  c.result("y", r < 0 ? pixel_unshuffle(x, -r) : pixel_shuffle(x, r));
}

void interpolate_case(Case& c) {
  using Mode = InterpolateOptions::Mode;
  const std::map<std::string, Mode> modes = {{"nearest", Mode::nearest},
                                             {"nearest-exact", Mode::nearest_exact},
                                             {"bilinear", Mode::bilinear},
                                             {"bicubic", Mode::bicubic}};
  std::string name = c.text("mode", "nearest");
  auto mode = modes.find(name);
  if (mode == modes.end()) throw Unsupported("mode = " + name);
  InterpolateOptions o{.mode = mode->second, .size = pair(c, "size", 0)};
  c.ignore("scale");
  if (c.has_attribute("scale")) {
    std::vector<double> scale = c.numbers("scale");
    o.scale_h = scale.front();
    o.scale_w = scale.back();
  }
  o.align_corners = c.flag("align_corners", false);
  o.antialias = c.flag("antialias", false);
  c.result("y", interpolate(c.get("in.x"), o));
}

void einsum_case(Case& c) {
  std::string equation = c.text("equation", "");
  c.result("y", einsum(equation, c.get("in.a"), c.get("in.b")));
}

void linear_case(Case& c) {
  c.result("y", linear(c.get("in.x"), c.get("param.weight"), c.get_if("param.bias")));
}

void matmul_case(Case& c) {
  bool ta = c.flag("ta", false), tb = c.flag("tb", false);
  c.result("y", matmul(c.get("in.a"), c.get("in.b"), ta, tb));
}

void attention_case(Case& c) {
  Tensor q = c.get("in.q");
  double scale = c.number("scale", 1 / std::sqrt(double(q.dim(3))));
  c.result("y", attention(q, c.get("in.k"), c.get("in.v"), scale, c.get_if("in.mask"),
                          c.flag("causal", false)));
}

// Self-attention without a mask goes through the packed projection, as in models.
void multi_head_attention(Case& c) {
  int64_t heads = c.integer("num_heads");
  Tensor x = c.get("in.x"), weight = c.get("param.in_proj_weight");
  Tensor bias = c.get_if("param.in_proj_bias"), mask = c.get_if("in.mask"), y;
  if (!mask && !c.has("in.kv")) {
    y = qkv_attention(linear(x, weight, bias), int(heads));
  } else {
    int64_t width = x.dim(2), per_head = width / heads;
    auto project = [&](const Tensor& from, int64_t k) {
      Tensor part = linear(from, slice(weight, 0, k * width, (k + 1) * width),
                           bias ? slice(bias, 0, k * width, (k + 1) * width) : bias);
      return permute(view(part, {from.dim(0), from.dim(1), heads, per_head}), {0, 2, 1, 3});
    };
    Tensor kv = c.has("in.kv") ? c.get("in.kv") : x;
    y = attention(project(x, 0), project(kv, 1), project(kv, 2), 1 / std::sqrt(double(per_head)),
                  mask);
    y = view(permute(y, {0, 2, 1, 3}), x.shape());
  }
  c.result("y", linear(y, c.get("param.out_proj.weight"), c.get_if("param.out_proj.bias")));
}

void batch_norm_case(Case& c) {
  BatchNormOptions o;
  o.train = c.flag("train", false);
  o.momentum = c.number("momentum", 0.1);
  o.eps = c.number("eps", 1e-5);
  Tensor mean = c.get("in.state.running_mean"), var = c.get("in.state.running_var");
  c.result("y", to_strided(batch_norm(c.get("in.x"), c.get_if("param.weight"),
                                      c.get_if("param.bias"), mean, var, o)));
  c.result("state.running_mean", mean);
  c.result("state.running_var", var);
}

// Several normalised axes are one axis of their product.
void layer_norm_case(Case& c) {
  int64_t width = 1;
  for (int64_t d : c.integers("normalized_shape")) width *= d;
  double eps = c.number("eps", 1e-5);
  auto flat = [&](const Tensor& p) { return p ? view(p, {width}) : p; };
  Tensor x = c.get("in.x");
  Tensor y = layer_norm(view(x, {x.numel() / width, width}), flat(c.get_if("param.weight")),
                        flat(c.get_if("param.bias")), eps);
  c.result("y", view(y, x.shape()));
}

void group_norm_case(Case& c) {
  int groups = int(c.integer("num_groups"));
  double eps = c.number("eps", 1e-5);
  c.result("y", group_norm(c.get("in.x"), groups, c.get_if("param.weight"), c.get_if("param.bias"),
                           eps));
}

void dropout_case(Case& c) {
  c.result("y", dropout(c.get("in.x"), c.number("p"), c.get("in.mask")));
}

void drop_path_case(Case& c) {
  bool scaled = c.flag("scale_by_keep", true);
  c.result("y", drop_path(c.get("in.x"), c.number("p"), c.get("in.mask"), scaled));
}

void normalize_case(Case& c) {
  c.only("p", 2.0);
  double eps = c.number("eps", 1e-12);
  c.result("y", along(c.get("in.x"), c.integer("dim"),
                      [&](const Tensor& x) { return normalize(x, eps); }));
}

// Pixels of a segmentation count as rows.
void cross_entropy_case(Case& c) {
  std::string reduction = c.text("reduction", "mean");
  CrossEntropyOptions o;
  o.smoothing = c.number("label_smoothing", 0);
  o.ignore_index = c.integer("ignore_index", -100);
  o.class_weight = c.get_if("in.weight");
  Tensor logits = c.get("in.logits");
  Tensor target = c.has("in.target") ? c.get("in.target") : c.get("in.target_prob");
  Shape shape = target.shape();
  if (logits.rank() > 2) {
    std::vector<int> order{0};
    for (int d = 2; d < logits.rank(); d++) order.push_back(d);
    order.push_back(1);
    int64_t classes = logits.dim(1), n = logits.numel() / classes;
    logits = view(permute(logits, order), {n, classes});
    target = view(target, {n});
  }
  if (reduction == "mean") return c.result("loss", cross_entropy(logits, target, o));
  Tensor terms = cross_entropy_rows(logits, target, o);
  if (reduction == "sum") return c.result("loss", sum(terms));
  if (reduction != "none") throw Unsupported("reduction = " + reduction);
  c.result("y", target.dtype() == DType::i64 ? view(terms, shape) : terms);
}

std::vector<Tensor> parts(Case& c) {
  std::vector<Tensor> all;
  for (int i = 0; c.has(concat("in.x", i)); i++) all.push_back(c.get(concat("in.x", i)));
  return all;
}

void cat_case(Case& c) { c.result("y", cat(parts(c), int(c.integer("dim")))); }
void stack_case(Case& c) { c.result("y", stack(parts(c), int(c.integer("dim")))); }

void flip_case(Case& c) { c.result("y", flip(c.get("in.x"), axes_of(c, "dims"))); }

void roll_case(Case& c) {
  c.result("y", roll(c.get("in.x"), c.integers("shifts"), axes_of(c, "dims")));
}

void pad_case(Case& c) {
  std::string mode = c.text("mode", "constant");
  const std::map<std::string, Border> borders = {{"constant", Border::constant},
                                                 {"reflect", Border::reflect},
                                                 {"replicate", Border::replicate}};
  if (!borders.count(mode)) throw Unsupported("mode = " + mode);
  double value = c.number("value", 0);
  c.result("y", pad(c.get("in.x"), c.integers("pad"), borders.at(mode), value));
}

void gather_case(Case& c) {
  c.result("y", gather(c.get("in.x"), int(c.integer("dim")), c.get("in.index")));
}

template <Tensor (*f)(const Tensor&, int, const Tensor&, const Tensor&)>
void add_at_index(Case& c) {
  c.result("y", f(c.get("in.x"), int(c.integer("dim")), c.get("in.index"), c.get("in.src")));
}

void embedding_case(Case& c) {
  std::optional<int64_t> padding;
  c.ignore("padding_idx");
  if (c.has_attribute("padding_idx")) padding = c.integer("padding_idx");
  c.result("y", embedding(c.get("param.weight"), c.get("in.index"), padding));
}

void one_hot_case(Case& c) {
  c.result("y", one_hot(c.get("in.index"), c.integer("num_classes"), c.dtype()));
}

void sorted_result(Case& c, const Sorted& sorted) {
  c.result("values", sorted.values);
  c.result("indices", sorted.indices);
}

void sort_case(Case& c) {
  bool descending = c.flag("descending", false);
  sorted_result(c, sort(c.get("in.x"), int(c.integer("dim", -1)), descending));
}

void topk_case(Case& c) {
  sorted_result(c, topk(c.get("in.x"), c.integer("k"), int(c.integer("dim", -1))));
}

void argmax_case(Case& c) { c.result("index", argmax(c.get("in.x"), int(c.integer("dim")))); }

void permute_case(Case& c) { c.result("y", permute(c.get("in.x"), axes_of(c, "dims"))); }

void slice_case(Case& c) {
  int64_t step = c.integer("step", 1);
  c.result("y",
           slice(c.get("in.x"), int(c.integer("dim")), c.integer("begin"), c.integer("end"), step));
}

void index_select_case(Case& c) {
  c.result("y", index_select(c.get("in.x"), c.get("in.index"), int(c.integer("dim", 0))));
}

void resample_pos_embed_case(Case& c) {
  c.only("interpolation", std::string("bicubic"));
  c.only("antialias", true);
  std::vector<int64_t> from = c.integers("old_size"), to = c.integers("new_size");
  c.result("y", resample_pos_embed(c.get("in.pos_embed"), int(c.integer("num_prefix_tokens")),
                                   int(from[0]), int(from[1]), int(to[0]), int(to[1])));
}

void philox_case(Case& c) {
  Tensor counter = c.get("in.counter"), key = c.get("in.key");
  Tensor bits = zeros(counter.shape(), DType::i64);
  for (int64_t i = 0; i < counter.dim(0); i++) {
    const int64_t *n = counter.data<int64_t>() + 4 * i, *k = key.data<int64_t>() + 2 * i;
    uint64_t seed = uint64_t(k[0]) | uint64_t(k[1]) << 32;
    U4 r = philox(seed, {uint32_t(n[0]), uint32_t(n[1]), uint32_t(n[2]), uint32_t(n[3])});
    int64_t* b = bits.data<int64_t>() + 4 * i;
    b[0] = r.x;
    b[1] = r.y;
    b[2] = r.z;
    b[3] = r.w;
  }
  c.result("bits", bits);
}

}  // namespace

void add_ops(Adapters& all) {
  auto add_op = [&](const char* name, Adapter adapter) { all[concat("ops.", name)] = adapter; };
  add_op("relu", elementwise<relu>);
  add_op("exp", elementwise<exp>);
  add_op("log", elementwise<log>);
  add_op("sqrt", elementwise<sqrt>);
  add_op("sigmoid", elementwise<sigmoid>);
  add_op("tanh", elementwise<tanh>);
  add_op("abs", elementwise<abs>);
  add_op("erf", elementwise<erf>);
  add_op("silu", elementwise<silu>);
  add_op("quick_gelu", elementwise<quick_gelu>);
  add_op("softplus", elementwise<softplus>);
  add_op("leaky_relu", leaky_relu_case);
  add_op("pow", pow_case);
  add_op("gelu", gelu_case);
  add_op("clamp", clamp_case);
  add_op("add", binary<add>);
  add_op("sub", binary<sub>);
  add_op("mul", binary<mul>);
  add_op("div", binary<div>);
  add_op("maximum", binary<maximum>);
  add_op("minimum", binary<minimum>);
  add_op("where", where_case);
  add_op("sum", reduction<sum>);
  add_op("mean", reduction<mean>);
  add_op("amax", reduction<amax>);
  add_op("amin", reduction<amin>);
  add_op("logsumexp", reduction<logsumexp>);
  add_op("var", moment<variance>);
  add_op("std", moment<standard_deviation>);
  add_op("cumsum", cumsum_case);
  add_op("softmax", softmax_family<softmax>);
  add_op("log_softmax", softmax_family<log_softmax>);
  add_op("cross_entropy", cross_entropy_case);
  add_op("matmul", matmul_case);
  add_op("linear", linear_case);
  add_op("conv2d", conv2d_case);
  add_op("batch_norm", batch_norm_case);
  add_op("layer_norm", layer_norm_case);
  add_op("group_norm", group_norm_case);
  add_op("dropout", dropout_case);
  add_op("drop_path", drop_path_case);
  add_op("attention", attention_case);
  add_op("multi_head_attention", multi_head_attention);
  add_op("max_pool2d", pool<max_pool2d>);
  add_op("avg_pool2d", pool<avg_pool2d>);
  add_op("adaptive_avg_pool2d", adaptive_pool<adaptive_avg_pool2d>);
  add_op("adaptive_max_pool2d", adaptive_pool<adaptive_max_pool2d>);
  add_op("conv_transpose2d", conv_transpose2d_case);
  add_op("unfold", unfold_case);
  add_op("fold", fold_case);
  add_op("pixel_shuffle", pixel_shuffle_case);
  add_op("interpolate", interpolate_case);
  add_op("einsum", einsum_case);
  add_op("normalize", normalize_case);
  add_op("cat", cat_case);
  add_op("stack", stack_case);
  add_op("flip", flip_case);
  add_op("roll", roll_case);
  add_op("pad", pad_case);
  add_op("gather", gather_case);
  add_op("scatter_add", add_at_index<scatter_add>);
  add_op("index_add", add_at_index<index_add>);
  add_op("embedding", embedding_case);
  add_op("one_hot", one_hot_case);
  add_op("sort", sort_case);
  add_op("topk", topk_case);
  add_op("argmax", argmax_case);
  add_op("permute", permute_case);
  add_op("slice", slice_case);
  add_op("index_select", index_select_case);
  add_op("resample_pos_embed", resample_pos_embed_case);
  add_op("philox4x32", philox_case);
}

}  // namespace pupil::verify
