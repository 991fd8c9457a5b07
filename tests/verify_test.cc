// pupil verify replays every reference case of the functions that Pupil has, and can fail.
#include "tools/verify.h"

#include <sys/wait.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "data/weights.h"
#include "fuzz.h"
#include "models/models.h"
#include "tensor/runtime.h"

namespace pupil {
namespace {

std::string golden() {
  const char* source = std::getenv("PUPIL_SOURCE");
  return std::string(source ? source : ".") + "/tests/golden";
}

struct Mode {
  const char* name;
  DType dtype;
  bool plain;
};
const Mode kModes[] = {{"f32", DType::f32, false},
                       {"f64", DType::f64, false},
                       {"f32 plain", DType::f32, true},
                       {"f64 plain", DType::f64, true}};

struct PlainMode {
  explicit PlainMode(bool on) : before(plain_mode()) { set_plain_mode(on); }
  ~PlainMode() { set_plain_mode(before); }
  bool before;
};

// How many cases of each function must pass. What else these functions have must be in `kSkipped`.
const std::map<std::string, int> kVisible = {{"aft.btuning_loss", 2},
                                             {"aft.evaluate", 2},
                                             {"aft.ft_autoencoder", 2},
                                             {"aft.ft_autoencoder_fit", 2},
                                             {"aft.ft_loss", 2},
                                             {"aft.gather_psi", 2},
                                             {"aft.kd_feature_loss", 4},
                                             {"aft.kernel", 2},
                                             {"aft.kernel_kd_loss", 2},
                                             {"aft.logme", 3},
                                             {"aft.loss", 9},
                                             {"aft.map_psi", 2},
                                             {"aft.no_kernel_loss", 3},
                                             {"aft.objective", 2},
                                             {"aft.rkd_loss", 2},
                                             {"aft.schedule", 2},
                                             {"aft.trajectory", 5},
                                             {"clip.prompt_tokens", 2},
                                             {"clip.zero_shot_head", 2},
                                             {"clip.zero_shot_logits", 2},
                                             {"eft.logits", 2},
                                             {"image.adjust_brightness", 2},
                                             {"image.adjust_contrast", 2},
                                             {"image.adjust_hue", 2},
                                             {"image.adjust_saturation", 2},
                                             {"image.adjust_sharpness", 2},
                                             {"image.affine", 2},
                                             {"image.autocontrast", 1},
                                             {"image.center_crop", 3},
                                             {"image.cutmix", 2},
                                             {"image.decode", 26},
                                             {"image.equalize", 1},
                                             {"image.erase", 1},
                                             {"image.grayscale3", 1},
                                             {"image.hflip", 1},
                                             {"image.invert", 1},
                                             {"image.mixup", 2},
                                             {"image.pad_crop", 1},
                                             {"image.posterize", 1},
                                             {"image.preprocess", 4},
                                             {"image.resize", 13},
                                             {"image.resized_crop", 2},
                                             {"image.rotate", 2},
                                             {"image.solarize", 1},
                                             {"image.vflip", 1},
                                             {"kd.cross_entropy", 3},
                                             {"kd.hinton", 8},
                                             {"kd.logit_standardization", 2},
                                             {"kd.soft_target_ce", 2},
                                             {"linalg.cayley", 2},
                                             {"linalg.expm", 3},
                                             {"linalg.haar", 2},
                                             {"linalg.orthogonal", 4},
                                             {"linalg.polar", 2},
                                             {"linalg.qr", 2},
                                             {"linalg.svd", 2},
                                             {"linear_probe.fit", 2},
                                             {"metrics.base_novel", 2},
                                             {"metrics.topk", 2},
                                             {"model.cifar_mobilenetv2", 2},
                                             {"model.cifar_resnet20", 2},
                                             {"model.cifar_resnet8x4", 2},
                                             {"model.clip", 4},
                                             {"model.cifar_shufflev1", 2},
                                             {"model.cifar_shufflev2", 2},
                                             {"model.cifar_vgg8", 2},
                                             {"model.cifar_wrn_16_2", 2},
                                             {"model.convnext", 2},
                                             {"model.resnet", 3},
                                             {"model.resnetv2", 2},
                                             {"model.timm_efficientnet", 2},
                                             {"model.timm_mobilenetv3", 1},
                                             {"model.timm_regnet", 1},
                                             {"model.timm_resnet", 2},
                                             {"model.tv_efficientnet", 1},
                                             {"model.tv_mobilenetv2", 2},
                                             {"model.tv_mobilenetv3", 2},
                                             {"model.tv_regnet", 1},
                                             {"model.tv_shufflenetv2", 2},
                                             {"model.eva", 4},
                                             {"model.hf_clip", 1},
                                             {"model.hf_dinov2", 4},
                                             {"model.hf_dinov3", 2},
                                             {"model.hf_folder", 1},
                                             {"model.hf_siglip", 1},
                                             {"model.hf_vit", 3},
                                             {"model.mixer", 2},
                                             {"model.vit", 12},
                                             {"ops.abs", 1},
                                             {"ops.adaptive_avg_pool2d", 2},
                                             {"ops.adaptive_max_pool2d", 1},
                                             {"ops.add", 1},
                                             {"ops.amax", 1},
                                             {"ops.amin", 1},
                                             {"ops.argmax", 1},
                                             {"ops.attention", 4},
                                             {"ops.avg_pool2d", 2},
                                             {"ops.batch_norm", 3},
                                             {"ops.bce_with_logits", 1},
                                             {"ops.cat", 1},
                                             {"ops.cdist", 2},
                                             {"ops.clamp", 1},
                                             {"ops.conv2d", 7},
                                             {"ops.conv_transpose2d", 2},
                                             {"ops.cosine_similarity", 2},
                                             {"ops.cross_entropy", 5},
                                             {"ops.cumsum", 1},
                                             {"ops.div", 1},
                                             {"ops.drop_path", 1},
                                             {"ops.dropout", 1},
                                             {"ops.einsum", 2},
                                             {"ops.embedding", 1},
                                             {"ops.erf", 1},
                                             {"ops.exp", 1},
                                             {"ops.flip", 1},
                                             {"ops.fold", 1},
                                             {"ops.gather", 1},
                                             {"ops.gelu", 2},
                                             {"ops.group_norm", 2},
                                             {"ops.huber_loss", 1},
                                             {"ops.index_add", 1},
                                             {"ops.index_select", 1},
                                             {"ops.interpolate", 7},
                                             {"ops.kl_div", 2},
                                             {"ops.l1_loss", 1},
                                             {"ops.layer_norm", 2},
                                             {"ops.leaky_relu", 1},
                                             {"ops.linear", 2},
                                             {"ops.log", 1},
                                             {"ops.log_softmax", 2},
                                             {"ops.logsumexp", 1},
                                             {"ops.matmul", 3},
                                             {"ops.matrix_exp", 2},
                                             {"ops.max_pool2d", 2},
                                             {"ops.maximum", 1},
                                             {"ops.mean", 2},
                                             {"ops.minimum", 1},
                                             {"ops.mse_loss", 1},
                                             {"ops.mul", 1},
                                             {"ops.multi_head_attention", 2},
                                             {"ops.nll_loss", 1},
                                             {"ops.normalize", 2},
                                             {"ops.one_hot", 1},
                                             {"ops.pad", 1},
                                             {"ops.permute", 1},
                                             {"ops.philox4x32", 1},
                                             {"ops.pixel_shuffle", 1},
                                             {"ops.polar", 1},
                                             {"ops.pow", 1},
                                             {"ops.quick_gelu", 1},
                                             {"ops.relu", 1},
                                             {"ops.resample_pos_embed", 2},
                                             {"ops.roll", 1},
                                             {"ops.scatter_add", 1},
                                             {"ops.sigmoid", 1},
                                             {"ops.silu", 1},
                                             {"ops.slice", 1},
                                             {"ops.smooth_l1_loss", 2},
                                             {"ops.softmax", 3},
                                             {"ops.softplus", 1},
                                             {"ops.solve", 1},
                                             {"ops.sort", 1},
                                             {"ops.sqrt", 1},
                                             {"ops.stack", 1},
                                             {"ops.std", 2},
                                             {"ops.sub", 1},
                                             {"ops.sum", 2},
                                             {"ops.svdvals", 1},
                                             {"ops.tanh", 1},
                                             {"ops.topk", 1},
                                             {"ops.unfold", 1},
                                             {"ops.var", 2},
                                             {"ops.where", 1},
                                             {"optim.adam", 2},
                                             {"optim.adamw", 2},
                                             {"optim.clip_grad_norm", 2},
                                             {"optim.ema", 2},
                                             {"optim.lamb", 1},
                                             {"optim.rmsprop", 1},
                                             {"optim.schedule.constant", 1},
                                             {"optim.schedule.cosine", 1},
                                             {"optim.schedule.cosine_timm", 2},
                                             {"optim.schedule.exponential", 1},
                                             {"optim.schedule.linear", 1},
                                             {"optim.schedule.multistep", 1},
                                             {"optim.schedule.multistep_timm", 1},
                                             {"optim.schedule.one_cycle", 1},
                                             {"optim.schedule.step", 1},
                                             {"optim.schedule.step_timm", 1},
                                             {"optim.schedule.warmup_constant", 1},
                                             {"optim.schedule.warmup_cosine", 1},
                                             {"optim.schedule.warmup_linear", 1},
                                             {"optim.sgd", 4},
                                             {"tip_adapter.logits", 2},
                                             {"transmiter.adapter", 4},
                                             {"transmiter.auxiliary_classes", 2},
                                             {"transmiter.combine_teachers", 2},
                                             {"transmiter.extract_loss", 2},
                                             {"transmiter.noise", 2},
                                             {"transmiter.plus_trajectory", 3},
                                             {"transmiter.procrustes", 3},
                                             {"transmiter.sample_indices", 2},
                                             {"transmiter.schedule", 2},
                                             {"transmiter.standardise", 2},
                                             {"transmiter.train_step", 2},
                                             {"transmiter.trajectory", 3},
                                             {"transmiter.transfer", 3}};
const std::set<std::string> kSkipped = {};

TEST(Verify, EveryVisibleCase) {
  PUPIL_NEEDS_SHARED();
  std::string reference = test::shared_folder() + "/reference/";
  std::vector<std::string> cases = find_cases(
      {reference + "ops", reference + "optim", reference + "aft", reference + "kd",
       reference + "linalg", reference + "models", reference + "image", reference + "transmiter"});
  for (const Mode& mode : kModes) {
    PlainMode plain(mode.plain);
    std::map<std::string, int> passed;
    std::set<std::string> skipped;
    for (const std::string& path : cases) {
      VerifyResult r = verify_case(path, {mode.dtype, {}});
      std::string name = std::filesystem::path(path).stem().string();
      EXPECT_NE(r.status, VerifyResult::failed)
          << mode.name << " " << name << " " << r.tensor << ": " << r.reason << " error " << r.error
          << ", allowed " << r.allowed;
      if (r.status == VerifyResult::passed) passed[r.function]++;
      if (r.status == VerifyResult::skipped && r.known) skipped.insert(name);
    }
    EXPECT_EQ(passed, kVisible) << mode.name;
    EXPECT_EQ(skipped, kSkipped) << mode.name;
  }
}

TEST(Verify, GoldenCasesOfTheSourceTree) {
  std::vector<std::string> cases = find_cases({golden()});
  EXPECT_GE(cases.size(), 60u);
  for (const Mode& mode : kModes) {
    PlainMode plain(mode.plain);
    for (const std::string& path : cases)
      EXPECT_EQ(verify_case(path, {mode.dtype, {}}).status, VerifyResult::passed) << path;
  }
}

// A case as it lies in its file, to be changed and written again.
struct Editable {
  std::vector<std::pair<std::string, Tensor>> tensors;
  std::map<std::string, std::string> metadata;
  explicit Editable(const std::string& path) {
    auto file = data::open_safetensors(path);
    metadata = file->metadata();
    for (const data::TensorInfo& info : file->list()) {
      DType dtype = info.dtype == "F64"   ? DType::f64
                    : info.dtype == "F32" ? DType::f32
                                          : DType::i64;
      tensors.emplace_back(info.name, file->read(info.name, dtype));
    }
  }
  Tensor& operator[](const std::string& name) {
    for (auto& [key, tensor] : tensors)
      if (key == name) return tensor;
    tensors.emplace_back(name, Tensor());
    return tensors.back().second;
  }
  VerifyResult verify(DType dtype = DType::f32) const {
    test::TemporaryFolder folder;
    std::filesystem::create_directory_symlink(golden() + "/files", folder / "files");  // of images
    data::save_safetensors(folder / "case.safetensors", tensors, metadata);
    return verify_case(folder / "case.safetensors", {dtype, {}});
  }
};

void shift_element(const Tensor& t, int64_t i, double by) {
  if (t.dtype() == DType::i64)
    t.data<int64_t>()[i] += 1;
  else if (t.dtype() == DType::f32)
    t.data<float>()[i] += float(by);
  else
    t.data<double>()[i] += by;
}

// One element of one expected tensor off by a thousandth of the largest: every such change, in
// every golden case, is found and named.
TEST(Verify, EveryCorruptedExpectationFails) {
  int corruptions = 0;
  for (const std::string& path : find_cases({golden()})) {
    Editable original(path);
    for (size_t k = 0; k < original.tensors.size(); k++) {
      const std::string& name = original.tensors[k].first;
      if (!name.starts_with("out.") && !name.starts_with("grad.")) continue;
      double largest = 0;
      for (double v : original.tensors[k].second.values())
        largest = std::max(largest, std::fabs(v));
      Editable changed(path);
      Tensor& t = changed.tensors[k].second;
      // (the gradient of two opposite rows is rounding noise, with a wide tolerance)
      shift_element(t, t.numel() / 2, std::max(1e-3 * largest, 2e-4));
      VerifyResult r = changed.verify();
      EXPECT_EQ(r.status, VerifyResult::failed) << path << " " << name;
      EXPECT_EQ(r.tensor, name) << path;
      corruptions++;
    }
  }
  EXPECT_GT(corruptions, 250);
}

TEST(Verify, MissingAndMisshapenTensorsFail) {
  Editable extra(golden() + "/aft_loss__golden_s.safetensors");
  ASSERT_EQ(extra.verify().status, VerifyResult::passed);
  extra["out.bogus"] = zeros({}, DType::f64);
  EXPECT_EQ(extra.verify().status, VerifyResult::failed);
  EXPECT_EQ(extra.verify().reason, "missing");

  Editable gradient(golden() + "/aft_loss__golden_s.safetensors");
  gradient["grad.param.t"] = zeros({3}, DType::f64);
  EXPECT_EQ(gradient.verify().tensor, "grad.param.t");

  // A teacher's gradient is never computed, so a case that expects one fails.
  Editable teacher(golden() + "/aft_loss__golden_s.safetensors");
  teacher["grad.in.psi"] = zeros({4, 3}, DType::f64);
  EXPECT_EQ(teacher.verify().reason, "missing");

  Editable shape(golden() + "/aft_loss__golden_s.safetensors");
  shape["out.delta"] = full({1}, shape["out.delta"].item(), DType::f64);
  EXPECT_EQ(shape.verify().reason, "shape (), expected (1)");

  Editable nothing(golden() + "/aft_loss__golden_s.safetensors");
  std::erase_if(nothing.tensors, [](auto& t) {
    return t.first.starts_with("out.") || t.first.starts_with("grad.");
  });
  EXPECT_EQ(nothing.verify().status, VerifyResult::failed);

  Editable not_a_number(golden() + "/ops_relu__normal.safetensors");
  not_a_number["out.y"].data<double>()[0] = NAN;
  EXPECT_EQ(not_a_number.verify().status, VerifyResult::failed);
}

TEST(Verify, WhatWasNotReadIsSkipped) {
  Editable attribute(golden() + "/ops_relu__normal.safetensors");
  attribute.metadata["attrs"] = "{\"ceiling\": 6}";
  EXPECT_EQ(attribute.verify().status, VerifyResult::skipped);
  EXPECT_EQ(attribute.verify().reason, "ceiling = 6");
  Editable input(golden() + "/ops_relu__normal.safetensors");
  input["in.mask"] = zeros({3}, DType::f64);
  EXPECT_EQ(input.verify().status, VerifyResult::skipped);
  Editable value(golden() + "/optim_adamw__two_groups.safetensors");
  std::string& attrs = value.metadata["attrs"];
  attrs.replace(attrs.find("\"amsgrad\": false"), 16, "\"amsgrad\": true");
  EXPECT_EQ(value.verify().reason, "amsgrad = true");
  Editable function(golden() + "/ops_relu__normal.safetensors");
  function.metadata["fn"] = "ops.rleu";
  EXPECT_EQ(function.verify().status, VerifyResult::skipped);
  EXPECT_FALSE(function.verify().known);
}

TEST(Verify, ErrorsAreExpectedOrFailures) {
  Editable fine(golden() + "/ops_softmax__rows.safetensors");
  fine.metadata["expect"] = "error";
  EXPECT_EQ(fine.verify().status, VerifyResult::failed);
  Editable thrown(golden() + "/ops_softmax__all_minus_inf.safetensors");
  EXPECT_EQ(thrown.verify().status, VerifyResult::passed);
  thrown.metadata.erase("expect");
  EXPECT_EQ(thrown.verify().status, VerifyResult::failed);
}

struct Output {
  int code;
  std::string text;
};
Output run(const std::string& arguments) {
  const char* program = std::getenv("PUPIL_PROGRAM");
  std::string command = concat(program ? program : "build/pupil", " verify ", arguments, " 2>&1");
  FILE* pipe = popen(command.c_str(), "r");
  Output output{-1, ""};
  char buffer[4096];
  for (size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) output.text.append(buffer, n);
  int status = pclose(pipe);
  output.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return output;
}

TEST(VerifyProgram, ExitCodesAndOutput) {
  Output all = run("");
  EXPECT_EQ(all.code, 0) << all.text;
  size_t count = find_cases({golden()}).size();
  EXPECT_TRUE(all.text.ends_with(concat("\n", count, " passed, 0 failed, 0 skipped\n")))
      << all.text;
  EXPECT_EQ(size_t(std::count(all.text.begin(), all.text.end(), '\n')), count + 1);
  EXPECT_EQ(run("--strict --dtype f64").code, 0);

  test::TemporaryFolder folder;
  Editable wrong(golden() + "/ops_relu__normal.safetensors");
  shift_element(wrong["out.y"], 2, 0.5);
  data::save_safetensors(folder / "wrong.safetensors", wrong.tensors, wrong.metadata);
  Output failed = run(folder.path());
  EXPECT_EQ(failed.code, 1);
  EXPECT_NE(failed.text.find("failed  wrong.safetensors  out.y: error 0.5"), std::string::npos)
      << failed.text;
  EXPECT_NE(failed.text.find("verify: 1 case failed\n"), std::string::npos) << failed.text;

  test::TemporaryFolder strange;
  std::filesystem::create_directory(strange / "deep");
  wrong.metadata["fn"] = "ops.strange";
  data::save_safetensors(strange / "deep/strange.safetensors", wrong.tensors, wrong.metadata);
  data::save_safetensors(strange / "model.safetensors", wrong.tensors, {});
  Output skipped = run(strange.path());
  EXPECT_EQ(skipped.code, 0);
  EXPECT_NE(skipped.text.find("unknown functions: ops.strange (1)\n0 passed, 0 failed, 1 skipped"),
            std::string::npos)
      << skipped.text;
  EXPECT_EQ(run("--strict " + strange.path()).code, 1);
  Output json = run("--json " + strange.path());
  EXPECT_NE(json.text.find("\"skipped\": 1"), std::string::npos) << json.text;

  for (const std::string& bad : {std::string("no/such/folder"), strange / "model.safetensors",
                                 std::string("--dtype f16"), std::string("--device tpu")})
    EXPECT_EQ(run(bad).code, 2) << bad;
  test::TemporaryFolder empty;
  EXPECT_EQ(run(empty.path()).code, 2);
}

// A damaged case fails with a line of its own, the others are still compared.
TEST(VerifyProgram, DamagedCases) {
  test::TemporaryFolder folder;
  Editable sound(golden() + "/ops_relu__normal.safetensors");
  data::save_safetensors(folder / "a.safetensors", sound.tensors, sound.metadata);
  data::save_safetensors(folder / "model.safetensors", sound.tensors, {});
  data::save_safetensors(folder / "values.safetensors", sound.tensors, sound.metadata);
  data::save_safetensors(folder / "header.safetensors", sound.tensors, sound.metadata);
  std::filesystem::resize_file(folder / "values.safetensors",
                               std::filesystem::file_size(folder / "values.safetensors") - 8);
  std::filesystem::resize_file(folder / "header.safetensors", 100);
  std::ofstream(folder / "other.safetensors") << "no case, and no safetensors either";
  for (const char* key : {"attrs", "tol"}) {
    Editable broken = sound;
    broken.metadata[key] = "{\"axis\": ";
    data::save_safetensors(folder / concat(key, ".safetensors"), broken.tensors, broken.metadata);
  }
  Output output = run(folder.path());
  EXPECT_EQ(output.code, 1);
  for (const char* line : {"failed  attrs.safetensors: ", "attrs is not a JSON object\n",
                           "failed  tol.safetensors: ", "tol is not a JSON object\n",
                           "failed  header.safetensors: ", "failed  values.safetensors: ",
                           "the file is cut off\n", "\n1 passed, 4 failed, 0 skipped\n"})
    EXPECT_NE(output.text.find(line), std::string::npos) << line << output.text;
  EXPECT_EQ(std::count(output.text.begin(), output.text.end(), '\n'), 7) << output.text;
  for (const char* name : {"header.safetensors", "values.safetensors"}) {
    Output alone = run(folder / name);
    EXPECT_EQ(alone.code, 2);
    EXPECT_NE(alone.text.find("cut off"), std::string::npos) << alone.text;
  }
}

// Cases with parameters, stored or computed; their expected values are made up.
std::vector<std::string> cases_with_parameters() {
  test::TemporaryFolder folder;
  std::vector<std::string> files;
  using Tensors = std::vector<std::pair<std::string, Tensor>>;
  auto add = [&](const std::string& function, const Tensors& tensors,
                 const std::string& attributes) {
    data::save_safetensors(folder / "a", tensors, {{"fn", function}, {"attrs", attributes}});
    files.push_back(test::content(folder / "a"));
  };
  auto lora = [](std::initializer_list<int64_t> kernel, Shape x, Shape y) {
    auto shape = [&](std::vector<int64_t> dims) {
      dims.insert(dims.end(), kernel.begin(), kernel.end());
      return Shape(std::span<const int64_t>(dims));
    };
    return Tensors{{"param.weight", full(shape({2, 3}), 0.5)},
                   {"param.bias", zeros({2})},
                   {"param.lora_A", full(shape({1, 3}), 1)},
                   {"param.lora_B", full(shape({2, 1}), 1)},
                   {"in.x", full(x, 1, DType::bf16)},
                   {"out.y", zeros(y)},
                   {"cot.y", full(y, 1)},
                   {"cot.z", full(y, 1)},
                   {"grad.param.lora_A", zeros(shape({1, 3}))}};
  };
  Tensors linear = lora({}, {2, 3}, {2, 2}), conv = lora({1, 1}, {1, 3, 2, 2}, {1, 2, 2, 2});
  add("lora.linear", linear, R"({"r": 1, "alpha": 2})");
  add("lora.conv2d", conv,
      R"({"form": "peft", "r": 1, "alpha": 2, "stride": [1, 1], "padding": 0, "dilation": 1})");
  add("lora.conv2d", conv,
      R"({"form": "other", "r": 1, "alpha": 2, "stride": [1, 2], "padding": 0, "dilation": 1})");
  add("lora.linear", linear,
      R"({"r": 1, "alpha": 2, "param_init": {"kind": "hash-v1", "seed": 1}, "param_shapes": )"
      R"({"weight": [2, 3], "bias": [2], "lora_A": [1, 3], "lora_B": [2, 1]}})");
  nlohmann::json shapes;
  nn::Store store(0);
  models::make_model("resnet8_kd", nn::Scope(store), {.classes = 2});
  for (const nn::Param& p : store.params())
    shapes[p.name] =
        std::vector<int64_t>(p.value.shape().dims, p.value.shape().dims + p.value.rank());
  for (const nn::Param& p : store.params())
    if (p.name.ends_with("running_var"))
      shapes[std::string(p.name).replace(p.name.size() - 11, 11, "num_batches_tracked")] =
          nlohmann::json::array();
  add("model.cifar_resnet8", {{"in.x", full({1, 3, 8, 8}, 1)}, {"out.logits", zeros({1, 2})}},
      concat(R"({"num_classes": 2, "param_init": {"kind": "hash-v1", "seed": 1}, "param_shapes": )",
             shapes.dump(), "}"));
  return files;
}

// A case whose damage changes only its numbers fails without an error.
TEST(Fuzz, Cases) {
  test::TemporaryFolder folder;
  std::string path = folder / "a.safetensors";
  std::vector<std::string> files = test::seeds({golden()}, ".safetensors", 3000);
  for (const std::string& file : cases_with_parameters()) {
    test::overwrite(path, file);
    EXPECT_EQ(verify_case(path, {DType::f64, {}}).reason.find("verify:"), std::string::npos)
        << verify_case(path, {DType::f64, {}}).reason;
    files.push_back(file);
  }
  test::FuzzOptions options;
  options.repair = test::repair_safetensors;
  // Within the metadata, whose values are JSON in a text.
  options.words = {R"(\"axis\": 1, )",
                   R"(\"p\": 2, )",
                   R"(\"p\": [2, 3], )",
                   R"(\"p\": \"a\", )",
                   R"(\"p\": null, )",
                   R"(\"p\": true, )",
                   R"(\"p\": [], )",
                   R"(\"p\": {}, )",
                   R"(\"reduction\": \"sum\", )",
                   R"(\"per\": {\"out.y\": 1}, )",
                   R"(\"per\": {\"out.loss\": {\"atol\": 1e9}}, )",
                   R"(\"per\": {\"out.y\": \"a\"}, )",
                   R"(\"rtol\": \"a\", )",
                   R"(\"rtol\": 1, )",
                   R"("expect":"error",)",
                   R"("fn":"",)",
                   R"("fn":"ops.add",)",
                   "in.",
                   "out.",
                   "cot.",
                   "grad.",
                   "param.",
                   "grad.in.",
                   "\"F64\"",
                   "\"F32\"",
                   "\"I64\"",
                   "\"BF16\"",
                   "null",
                   "[1]",
                   "[2,2]",
                   "-1",
                   R"(\"param_init\": {\"kind\": \"hash-v1\", \"seed\": 1}, )",
                   R"(\"param_init\": {\"kind\": \"none\"}, )",
                   R"(\"param_shapes\": {\"weight\": [2, 3]}, )",
                   R"(\"param_shapes\": {\"weight\": [99999, 99999]}, )"};
  size_t round = 0;
  auto parse = [&] {
    VerifyResult result = verify_case(path, {round++ % 2 ? DType::f64 : DType::f32, {}});
    if (result.status == VerifyResult::failed) fail_input(path, ": ", result.reason);
  };
  test::fuzz(files, path, parse, options);
}

}  // namespace
}  // namespace pupil
