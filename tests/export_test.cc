// ONNX files: the bytes are decoded by a reader of the test's own, and the graphs are evaluated on
// batches of three.
#include "tools/export.h"

#include <fstream>
#include <set>

#include "data/onnx.h"
#include "models/clip.h"
#include "program.h"
#include "tensor/ops.h"
#include "tensor/runtime.h"
#include "tools/onnx_graph.h"

namespace pupil {
namespace {

using test::TemporaryFolder;
using Sizes = std::vector<int64_t>;

// --- protobuf, as far as onnx.proto needs it ---

struct Field {
  int number;
  uint64_t value = 0;      // of an integer, or the bits of a float
  std::string_view bytes;  // of a text or message
};

std::vector<Field> fields(std::string_view m) {
  std::vector<Field> all;
  size_t at = 0;
  auto byte = [&] { return uint8_t(m.at(at++)); };
  auto varint = [&] {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      uint8_t b = byte();
      value |= uint64_t(b & 127) << shift;
      if (b < 128) return value;
    }
  };
  while (at < m.size()) {
    uint64_t tag = varint();
    Field f{int(tag >> 3), 0, {}};
    if ((tag & 7) == 0)
      f.value = varint();
    else if ((tag & 7) == 5)
      for (int k = 0; k < 4; k++) f.value |= uint64_t(byte()) << 8 * k;
    else if ((tag & 7) == 2) {
      size_t size = size_t(varint());
      if (size > m.size() - at) throw std::runtime_error("a field reaches beyond its message");
      f.bytes = m.substr(at, size);
      at += size;
    } else
      throw std::runtime_error(concat("wire type ", tag & 7));
    all.push_back(f);
  }
  return all;
}

std::string_view bytes_of(std::string_view message, int number) {
  for (const Field& f : fields(message))
    if (f.number == number) return f.bytes;
  return {};
}

std::string text_of(std::string_view message, int number) {
  return std::string(bytes_of(message, number));
}

struct Node {
  std::string type;
  std::vector<std::string> inputs, outputs;
  std::map<std::string, Sizes> ints;
  std::map<std::string, float> reals;
};

struct File {
  std::string content;  // what the views look at
  int64_t ir = 0, opset = 0;
  std::vector<Node> nodes;
  std::map<std::string, Tensor> initializers;
  std::map<std::string, std::map<std::string, std::string>> external;
  std::map<std::string, Sizes> inputs, outputs;  // 0: "batch"
  std::map<std::string, uint64_t> types;         // of these
  std::map<std::string, std::string> metadata;

  std::vector<std::string> operators() const {
    std::vector<std::string> types;
    for (const Node& n : nodes) types.push_back(n.type);
    return types;
  }
};

Node decode_node(std::string_view m) {
  Node n;
  for (const Field& f : fields(m)) {
    if (f.number == 1) n.inputs.emplace_back(f.bytes);
    if (f.number == 2) n.outputs.emplace_back(f.bytes);
    if (f.number == 4) n.type = f.bytes;
    if (f.number != 5) continue;
    std::string name = text_of(f.bytes, 1);
    for (const Field& a : fields(f.bytes)) {
      uint32_t bits = uint32_t(a.value);
      if (a.number == 2) memcpy(&n.reals[name], &bits, 4);
      if (a.number == 3 || a.number == 8) n.ints[name].push_back(int64_t(a.value));
    }
  }
  return n;
}

void decode_tensor(File& file, std::string_view m) {
  std::string name = text_of(m, 8);
  Sizes dims;
  uint64_t type = 0;
  std::string_view raw;
  for (const Field& f : fields(m)) {
    if (f.number == 1) dims.push_back(int64_t(f.value));
    if (f.number == 2) type = f.value;
    if (f.number == 9) raw = f.bytes;
    if (f.number == 13) file.external[name][text_of(f.bytes, 1)] = text_of(f.bytes, 2);
  }
  ASSERT_TRUE(type == 1 || type == 7) << name;
  Tensor t = empty(Shape(std::span<const int64_t>(dims)), type == 1 ? DType::f32 : DType::i64);
  if (!file.external.count(name)) {
    ASSERT_EQ(raw.size(), t.bytes()) << name;
    memcpy(t.raw(), raw.data(), raw.size());
  }
  EXPECT_TRUE(file.initializers.emplace(name, t).second) << name << " twice";
}

void decode_port(File& file, std::map<std::string, Sizes>& ports, std::string_view m) {
  std::string name = text_of(m, 1);
  std::string_view tensor = bytes_of(bytes_of(m, 2), 1);
  for (const Field& f : fields(tensor)) {
    if (f.number == 1) file.types[name] = f.value;
    if (f.number != 2) continue;
    for (const Field& dim : fields(f.bytes)) {
      Field size = fields(dim.bytes).at(0);
      EXPECT_TRUE(size.number == 1 || size.bytes == "batch");
      ports[name].push_back(size.number == 1 ? int64_t(size.value) : 0);
    }
  }
}

File decode(const std::string& path) {
  File file;
  file.content = test::read_text(path);
  for (const Field& f : fields(file.content)) {
    if (f.number == 1) file.ir = int64_t(f.value);
    if (f.number == 8) file.opset = int64_t(fields(f.bytes).back().value);
    if (f.number == 14) file.metadata[text_of(f.bytes, 1)] = text_of(f.bytes, 2);
    if (f.number != 7) continue;
    for (const Field& g : fields(f.bytes)) {
      if (g.number == 1) file.nodes.push_back(decode_node(g.bytes));
      if (g.number == 5) decode_tensor(file, g.bytes);
      if (g.number == 11) decode_port(file, file.inputs, g.bytes);
      if (g.number == 12) decode_port(file, file.outputs, g.bytes);
    }
  }
  return file;
}

// --- evaluation by the definitions of the operators ---

Sizes whole(const Tensor& t) {
  Sizes out;
  for (double v : t.values()) out.push_back(int64_t(v));
  return out;
}

Tensor reshape(const Tensor& x, Sizes sizes) {
  int64_t known = 1;
  for (size_t d = 0; d < sizes.size(); d++) {
    if (sizes[d] == 0) sizes[d] = x.dim(int(d));
    if (sizes[d] > 0) known *= sizes[d];
  }
  for (int64_t& size : sizes)
    if (size < 0) size = x.numel() / known;
  return view(to_strided(x), Shape(std::span<const int64_t>(sizes)));
}

Tensor transpose(const Tensor& x, const Sizes& order) {
  return permute(to_strided(x), std::vector<int>(order.begin(), order.end())).contiguous();
}

// Of integers, where one operand may be a scalar.
Tensor integers(const Node& n, const std::vector<Tensor>& in) {
  Sizes a = whole(in[0]);
  if (n.type == "ArgMax") return argmax(in[0].to(DType::f32), int(n.ints.at("axis").at(0)));
  if (n.type == "Squeeze") return from(a, {1});
  Sizes b = whole(in[1]), all;
  if (n.type == "Range") {
    for (int64_t v = a[0]; v < b[0]; v += whole(in[2])[0]) all.push_back(v);
  } else {
    for (size_t i = 0; i < std::max(a.size(), b.size()); i++) {
      int64_t x = a[i % a.size()], y = b[i % b.size()];
      all.push_back(n.type == "Add" ? x + y : x * y);
    }
  }
  return from(all, {int64_t(all.size())});
}

Tensor evaluate_node(const Node& n, const std::vector<Tensor>& in) {
  auto ints = [&](const char* name) { return n.ints.at(name); };
  auto one = [&](const char* name) { return n.ints.at(name).at(0); };
  const std::string& op = n.type;
  if (op == "Identity") return in[0];
  if (std::set<std::string>{"ArgMax", "Squeeze", "Range"}.count(op) ||
      ((op == "Add" || op == "Mul") && in[0].dtype() == DType::i64))
    return integers(n, in);
  if (op == "Relu") return relu(in[0]);
  if (op == "Erf") return erf(in[0]);
  if (op == "Sigmoid") return sigmoid(in[0]);
  if (op == "Add") return add(to_strided(in[0]), to_strided(in[1]));
  if (op == "Sub") return sub(in[0], in[1]);
  if (op == "Mul") return mul(to_strided(in[0]), to_strided(in[1]));
  if (op == "Div") return div(in[0], in[1]);
  if (op == "Cast") return one("to") == 1 ? in[0].to(DType::f32) : in[0];
  if (op == "Conv") {
    Sizes pads = n.ints.count("pads") ? ints("pads") : Sizes{0, 0, 0, 0}, strides = ints("strides");
    EXPECT_TRUE(pads[0] == pads[2] && pads[1] == pads[3]);
    ConvOptions o{{int(strides[0]), int(strides[1])}, {int(pads[0]), int(pads[1])}};
    o.groups = n.ints.count("group") ? int(one("group")) : 1;
    return to_strided(conv2d(in[0], in[1], in.size() > 2 ? in[2] : Tensor(), o));
  }
  if (op == "BatchNormalization") {
    Tensor mean = in[3], variance = in[4];
    BatchNormOptions options;
    options.eps = n.reals.at("epsilon");
    return batch_norm(in[0], in[1], in[2], mean, variance, options);
  }
  if (op == "Gemm") {
    EXPECT_EQ(one("transB"), 1);
    return linear(in[0], in[1], in.size() > 2 ? in[2] : Tensor());
  }
  if (op == "MatMul") return matmul(in[0], in[1]);
  if (op == "Transpose") return transpose(in[0], ints("perm"));
  if (op == "Reshape") return reshape(in[0], whole(in[1]));
  if (op == "GlobalAveragePool") return mean(to_strided(in[0]), {2, 3}, true);
  if (op == "Flatten") return reshape(in[0], {0, -1});
  if (op == "ReduceMean") {
    Sizes axes = ints("axes");
    return mean(in[0], std::vector<int>(axes.begin(), axes.end()), one("keepdims"));
  }
  if (op == "Softmax") return softmax(in[0]);
  if (op == "LayerNormalization") return layer_norm(in[0], in[1], in[2], n.reals.at("epsilon"));
  if (op == "Shape") return from(Sizes{in[0].dim(int(one("start")))}, {one("end") - one("start")});
  if (op == "Concat" && in[0].dtype() == DType::i64) {
    Sizes all;
    for (const Tensor& t : in)
      for (int64_t v : whole(t)) all.push_back(v);
    return from(all, {int64_t(all.size())});
  }
  if (op == "Concat") return cat(in, int(one("axis")));
  if (op == "Expand") {
    Sizes sizes = whole(in[1]);
    return expand(in[0], Shape(std::span<const int64_t>(sizes))).contiguous();
  }
  if (op == "Gather") {
    EXPECT_EQ(one("axis"), 0);
    if (in[1].rank() == 1) return index_select(in[0], in[1]);
    EXPECT_EQ(in[1].rank(), 0);  // one number, whose axis goes
    int64_t at = whole(in[1])[0];
    Sizes sizes(in[0].shape().dims + 1, in[0].shape().dims + in[0].rank());
    return reshape(slice(in[0], 0, at, at + 1), sizes);
  }
  if (op == "Slice")
    return slice(in[0], int(whole(in[3])[0]), whole(in[1])[0], whole(in[2])[0], whole(in[4])[0]);
  throw std::runtime_error("the test cannot evaluate " + op);
}

Tensor evaluate(const File& file, const Tensor& x) {
  NoGrad no_grad;
  std::map<std::string, Tensor> values = file.initializers;
  values[file.inputs.begin()->first] = x;
  for (const Node& n : file.nodes) {
    std::vector<Tensor> in;
    for (const std::string& name : n.inputs) in.push_back(values.at(name));
    EXPECT_TRUE(values.emplace(n.outputs.at(0), evaluate_node(n, in)).second) << n.outputs[0];
  }
  return values.at(file.outputs.begin()->first);
}

// --- networks ---

struct Built {
  nn::Store store{7};
  models::Model model;
  explicit Built(const std::string& name, models::Options options = {})
      : model(models::make_model(name, nn::Scope(store), options)) {
    // Other statistics and weights than those of a new network, most of which change nothing.
    for (nn::Param& p : store.params()) {
      if (p.value.dtype() != DType::f32 || p.value.rank() != 1) continue;
      RngKey key{3, stream_id(p.name), 0};
      for (int64_t i = 0; i < p.value.numel(); i++) p.value.data<float>()[i] += uniform(key, i);
    }
  }
  Tensor parameter(const std::string& name) { return store.find(name)->value; }
};

Tensor images(const Shape& shape) {
  nn::Store store(99);
  return nn::Scope(store).buffer("images", shape, {nn::Init::normal, 1});
}

double difference(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.shape(), b.shape());
  std::vector<double> x = a.values(), y = b.values();
  double largest = 0, most = 0;
  for (size_t i = 0; i < std::min(x.size(), y.size()); i++) {
    largest = std::max(largest, std::abs(x[i] - y[i]));
    most = std::max(most, std::abs(x[i]));
  }
  EXPECT_GT(most, 1e-3);
  return largest / most;
}

File exported(Built& built, const ExportOptions& options = {}) {
  TemporaryFolder folder;
  export_onnx(folder / "net.onnx", built.model, built.store, options);
  return decode(folder / "net.onnx");
}

void expect_same_answers(Built& built, const Tensor& x) {
  File file = exported(built);
  NoGrad no_grad;
  EXPECT_LT(difference(built.model.forward(x, {}).logits, evaluate(file, x)), 1e-5)
      << built.model.name;
}

// Zeros that become another number when a pool reads them (see pooling in onnx_graph.cc).
TEST(Export, EveryInitializerIsRead) {
  Built built("mlp(inputs=64)");
  built.model.forward = [inner = built.model.forward](const Tensor& x, const nn::Call& call) {
    Tensor image = pad(view(x, {x.dim(0), 1, 8, 8}), {1, 1, 1, 1});
    return inner(view(max_pool2d(image, {3, 1}), {x.dim(0), 64}), call);
  };
  File file = exported(built);
  std::set<std::string> read;
  for (const Node& n : file.nodes) read.insert(n.inputs.begin(), n.inputs.end());
  for (auto& [name, value] : file.initializers) EXPECT_TRUE(read.count(name)) << name;
  EXPECT_EQ(file.nodes.at(1).type, "Pad");
  EXPECT_GT(file.initializers.at(file.nodes[1].inputs.at(2)).item(), 0);
}

TEST(Export, NodesNamesAndValuesOfASmallNetwork) {
  Built built("mlp(inputs=6,hidden=5,standardize=1)", {.classes = 4});
  File file = exported(built, {.class_names = {"ant", "bee", "cat", "dog"}});
  EXPECT_EQ(file.ir, 8);
  EXPECT_EQ(file.opset, 17);
  EXPECT_EQ(file.operators(), (std::vector<std::string>{"Reshape", "Sub", "Div", "Gemm", "Relu",
                                                        "Gemm", "Identity"}));
  EXPECT_EQ(file.inputs, (std::map<std::string, Sizes>{{"rows", {0, 6}}}));
  EXPECT_EQ(file.outputs, (std::map<std::string, Sizes>{{"logits", {0, 4}}}));
  EXPECT_EQ(file.types.at("rows"), 1u);
  // Every parameter under its name, with its values, and the sizes of the Reshape.
  EXPECT_EQ(file.initializers.size(), built.store.params().size() + 1);
  for (const nn::Param& p : built.store.params()) {
    ASSERT_TRUE(file.initializers.count(p.name)) << p.name;
    EXPECT_EQ(file.initializers.at(p.name).shape(), p.value.shape()) << p.name;
    EXPECT_EQ(file.initializers.at(p.name).values(), p.value.values()) << p.name;
  }
  EXPECT_EQ(file.nodes[3].inputs[1], "layers.0.weight");
  EXPECT_EQ(file.nodes[3].ints.at("transB"), Sizes{1});
  EXPECT_EQ(file.metadata.at("model"), built.model.name);
  EXPECT_EQ(file.metadata.at("classes"), "4");
  EXPECT_EQ(file.metadata.at("labels"), "ant\nbee\ncat\ndog\n");
  EXPECT_EQ(file.metadata.count("mean"), 0u);
}

TEST(Export, PreprocessingIsMetadata) {
  Built built("tf_efficientnet_lite2");
  std::map<std::string, std::string> meta = exported(built).metadata;
  EXPECT_EQ(meta.at("input"), models::describe(built.model.input));
  EXPECT_EQ(meta.at("mean"), "0.5 0.5 0.5");
  EXPECT_EQ(meta.at("std"), "0.5 0.5 0.5");
  EXPECT_EQ(meta.at("size"), "260");
  EXPECT_EQ(meta.at("filter"), "bicubic");
  EXPECT_EQ(meta.at("crop_pct"), "0.89");
}

TEST(Export, NormsAreFoldedIntoConvolutions) {
  Built built("resnet8_kd");
  File file = exported(built);
  EXPECT_EQ(file.inputs.at("images"), (Sizes{0, 3, 32, 32}));
  const Node& first = file.nodes.at(0);
  EXPECT_EQ(first.type, "Conv");
  EXPECT_EQ(first.inputs,
            (std::vector<std::string>{"images", "conv1.weight.computed", "bn1.bias.computed"}));
  EXPECT_EQ(first.ints.at("strides"), (Sizes{1, 1}));
  EXPECT_EQ(first.ints.at("pads"), (Sizes{1, 1, 1, 1}));
  EXPECT_EQ(first.ints.at("kernel_shape"), (Sizes{3, 3}));
  auto at = [&](const char* name) { return built.parameter(name).values(); };
  std::vector<double> w = at("conv1.weight"), g = at("bn1.weight"), v = at("bn1.running_var"),
                      m = at("bn1.running_mean"), b = at("bn1.bias");
  std::vector<double> weight = file.initializers.at(first.inputs[1]).values(),
                      bias = file.initializers.at(first.inputs[2]).values();
  ASSERT_EQ(weight.size(), w.size());
  for (size_t i = 0; i < w.size(); i++) {
    size_t c = i / 27;
    double factor = g[c] / std::sqrt(v[c] + 1e-5);
    EXPECT_NEAR(weight[i], w[i] * factor, 1e-6);
    EXPECT_NEAR(bias[c], b[c] - m[c] * factor, 1e-6);
  }
}

TEST(Export, GraphsGiveTheSameAnswersForThreeImages) {
  for (const char* name :
       {"resnet8_kd", "vit(dim=16,depth=2,heads=2,patch=4,image=8)",
        "vit(dim=16,depth=1,heads=2,patch=4,image=8,class_token=0,pool=avg)", "mobilenetv2_kd"}) {
    Built built(name);
    int64_t side = built.model.input.size;
    expect_same_answers(built, images({3, 3, side, side}));
  }
  Built mlp("mlp(inputs=6,hidden=5x5,standardize=1)");
  expect_same_answers(mlp, images({3, 6}));
}

TEST(Export, BothTowersOfClipAndSiglip) {
  for (bool siglip : {false, true}) {
    models::ClipConfig config;
    config.image = 8, config.patch = 4;
    for (models::ClipTransformer* tower : {&config.vision, &config.text})
      tower->width = 16, tower->hidden = 24, tower->heads = 2, tower->layers = 2;
    config.text.activation = Activation::quick_gelu;
    config.context = 7, config.vocabulary = 40, config.embed_dim = siglip ? 16 : 6;
    config.siglip = siglip;
    nn::Store store(5);
    models::Clip clip = models::make_clip(config, nn::Scope(store));
    NoGrad no_grad;
    TemporaryFolder folder;
    export_onnx(folder / "image.onnx", clip.image, store);
    File image = decode(folder / "image.onnx");
    Tensor x = images({3, 3, 8, 8});
    EXPECT_LT(difference(clip.image.forward(x, {}).features, evaluate(image, x)), 1e-5) << siglip;
    EXPECT_EQ(image.outputs, (std::map<std::string, Sizes>{{"features", {0, config.embed_dim}}}));

    data::onnx::save(folder / "text.onnx", onnx_text_graph(clip, store));
    File text = decode(folder / "text.onnx");
    EXPECT_EQ(text.inputs, (std::map<std::string, Sizes>{{"ids", {0, 7}}}));
    EXPECT_EQ(text.types.at("ids"), 7u);
    // The largest id, where CLIP's text ends, at other places, and twice.
    Tensor ids =
        from(Sizes{1, 9, 39, 3, 5, 7, 2, 1, 39, 4, 39, 2, 2, 2, 8, 8, 8, 8, 8, 8, 39}, {3, 7});
    EXPECT_LT(difference(clip.text(ids, {}), evaluate(text, ids)), 1e-5) << siglip;
  }
}

TEST(Export, PlainLoopsGiveAGraphWithNorms) {
  Built built("resnet8_kd");
  set_plain_mode(true);
  File file = exported(built);
  set_plain_mode(false);
  std::vector<std::string> operators = file.operators();
  EXPECT_EQ(std::count(operators.begin(), operators.end(), "BatchNormalization"), 9);
  EXPECT_TRUE(file.initializers.count("bn1.running_var"));
  NoGrad no_grad;
  Tensor x = images({3, 3, 32, 32});
  EXPECT_LT(difference(built.model.forward(x, {}).logits, evaluate(file, x)), 1e-5);
}

TEST(Export, PixelsAreNormalisedInTheGraph) {
  Built built("vit(dim=16,depth=1,heads=2,patch=4,image=8)");
  built.model.input.mean = {0.4f, 0.5f, 0.6f};
  built.model.input.std = {0.2f, 0.25f, 0.3f};
  File file = exported(built, {.with_preprocess = true});
  EXPECT_EQ(file.inputs, (std::map<std::string, Sizes>{{"pixels", {0, 8, 8, 3}}}));
  EXPECT_EQ(file.types.at("pixels"), 2u);
  Tensor pixels = empty({3, 8, 8, 3}, DType::u8), x = empty({3, 3, 8, 8});
  for (int64_t i = 0; i < pixels.numel(); i++) {
    uint8_t p = pixels.data<uint8_t>()[i] = uint8_t(random_bits({5}, i));
    size_t c = size_t(i % 3);
    x.data<float>()[(i / 192 * 3 + int64_t(c)) * 64 + i / 3 % 64] =
        (float(p) / 255 - built.model.input.mean[c]) / built.model.input.std[c];
  }
  NoGrad no_grad;
  EXPECT_LT(difference(built.model.forward(x, {}).logits, evaluate(file, pixels)), 1e-5);
}

TEST(Export, PatchesAreAConvolutionWithThePublicWeight) {
  Built built("vit(dim=16,depth=2,heads=2,patch=4,image=8)");
  File file = exported(built);
  EXPECT_EQ(file.nodes.at(0).type, "Conv");
  EXPECT_EQ(file.nodes[0].inputs.at(1), "patch_embed.proj.weight");
  EXPECT_EQ(file.initializers.at("patch_embed.proj.weight").shape(), (Shape{16, 3, 4, 4}));
  EXPECT_EQ(file.initializers.at("blocks.0.attn.qkv.weight").values(),
            built.parameter("blocks.0.attn.qkv.weight").values());
}

TEST(Export, LargeNetworksKeepTheirValuesBesideTheFile) {
  Built built("mlp(inputs=6,hidden=5)");
  TemporaryFolder folder;
  data::onnx::save(folder / "net.onnx", onnx_graph(built.model, built.store, false), 100);
  File file = decode(folder / "net.onnx");
  std::string values = test::read_text(folder / "net.onnx.data");
  EXPECT_LT(file.content.size(), values.size() + 1000);
  for (const nn::Param& p : built.store.params()) {
    auto& place = file.external.at(p.name);
    EXPECT_EQ(place.at("location"), "net.onnx.data");
    ASSERT_EQ(place.at("length"), std::to_string(p.value.bytes()));
    EXPECT_EQ(values.substr(std::stoul(place.at("offset")), p.value.bytes()),
              std::string(static_cast<const char*>(p.value.raw()), p.value.bytes()));
  }
  // What tells shapes must be read without that file.
  for (auto& [name, value] : file.initializers)
    EXPECT_EQ(file.external.count(name) > 0, value.dtype() == DType::f32) << name;
  EXPECT_FALSE(std::filesystem::exists(folder / "net.onnx.tmp"));
}

// A network whose forward pass ends with `last`.
void expect_internal_error(std::function<Tensor(const Tensor&)> last, const std::string& word) {
  Built built("mlp(inputs=6)");
  built.model.forward = [inner = built.model.forward, last](const Tensor& x, const nn::Call& call) {
    Tensor y = last(inner(x, call).logits);
    return models::Output{y, y};
  };
  try {
    onnx_graph(built.model, built.store, false);
    ADD_FAILURE() << "nothing was noticed: " << word;
  } catch (const InputError& error) {
    ADD_FAILURE() << "blames the person: " << error.what();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
  }
}

TEST(Export, AnOpThatDoesNotAnnounceItselfIsNoticed) {
  // A copy that no op knows of, read by one: its values depend on the images.
  expect_internal_error([](const Tensor& y) { return add(y, y.clone()); }, "add: its input");
  // The output itself.
  expect_internal_error([](const Tensor& y) { return y.clone(); }, "does not follow");
  // An option that depends on values, or on the number of images.
  expect_internal_error([](const Tensor& y) { return scale(y, y.values()[0]); }, "scale: another");
  expect_internal_error([](const Tensor& y) { return scale(y, double(y.dim(0))); },
                        "scale: another");
  // Another op.
  expect_internal_error([](const Tensor& y) { return y.dim(0) == 1 ? relu(y) : exp(y); },
                        "exp: another");
  // An op without a counterpart.
  expect_internal_error([](const Tensor& y) { return cumsum(y, 1); }, "cumsum");
}

TEST(Export, BadInputIsOneLine) {
  TemporaryFolder folder;
  Built built("mlp(inputs=6,hidden=5)");
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const nn::Param& p : built.store.params()) tensors.emplace_back(p.name, p.value);
  data::save_safetensors(folder / "net.safetensors", tensors);
  std::string model = "mlp(inputs=6,hidden=5)";
  auto refuse = [&](std::vector<std::string> arguments, std::vector<std::string> words) {
    arguments.insert(arguments.begin(), "export");
    test::Outcome done = test::run_program(arguments, folder);
    EXPECT_EQ(done.code, 2) << done.out << done.err;
    EXPECT_EQ(std::count(done.err.begin(), done.err.end(), '\n'), 1) << done.err;
    for (const std::string& word : words)
      EXPECT_NE(done.err.find(word), std::string::npos) << "no " << word << " in " << done.err;
    EXPECT_FALSE(std::filesystem::exists(folder / "net.onnx"));
  };
  refuse({"net.onnx", "--model", "resnet99", "--weights", "net.safetensors"}, {"resnet99"});
  refuse({"net.onnx", "--model", model}, {"--weights"});
  refuse({"net.onnx", "--model", model, "--weights", "none.safetensors"}, {"none.safetensors"});
  refuse({"net.onnx", "--weights", "net.safetensors"}, {"no network", "pupil models"});
  refuse({"no/net.onnx", "--model", model, "--weights", "net.safetensors"}, {"no/net.onnx"});
  refuse({"net.onnx", "--model", model, "--weights", "net.safetensors", "--with-preprocess"},
         {"rows of features"});
  test::Outcome fine = test::run_program(
      {"export", "net.onnx", "--model", model, "--weights", "net.safetensors"}, folder);
  EXPECT_EQ(fine.code, 0) << fine.err;
  EXPECT_EQ(decode(folder / "net.onnx").outputs.at("logits"), (Sizes{0, 10}));
}

}  // namespace
}  // namespace pupil
