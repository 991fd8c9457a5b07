// Networks by name. One .cc per family; parameter names equal the public checkpoint's, so loading
// needs no table.
#pragma once
#include "../nn/nn.h"

namespace pupil::models {

struct Output {
  Tensor logits;    // (n, classes)
  Tensor features;  // (n, width): the vector that enters the final linear layer
};

enum class Filter { nearest, box, bilinear, hamming, bicubic, lanczos };  // Pillow's
const char* name_of(Filter);                                              // "bicubic"
std::optional<Filter> filter_named(std::string_view name);

// What a model expects of its input images; from the checkpoint's metadata or the family's default.
struct Preprocessing {
  int size = 32;  // side in pixels after resizing
  int channels = 3;
  std::vector<float> mean{0, 0, 0}, std{1, 1, 1};  // of pixels in [0, 1]
  Filter filter = Filter::bilinear;                // of resizing
  // Share of the side that the centre crop keeps: the shorter side becomes floor(size / crop_pct).
  double crop_pct = 1;
};

struct VitConfig;
struct EvaConfig;
struct ClipConfig;

// A value: the layers live in `forward`'s closure, the parameters in the store it was built on.
struct Model {
  std::string name;
  int64_t classes = 0, width = 0;  // width of `features`
  Preprocessing input;
  int64_t inputs = 0;           // values of a row, for a network that takes rows instead of images
  std::vector<int64_t> widths;  // of networks side by side: their shares of `features`; else empty
  std::string head;             // parameter prefix of the classifier: "fc", "linear", "head"
  std::vector<std::string> taps;  // names that it announces, in order of the forward pass
  std::function<Output(const Tensor& x, const nn::Call&)> forward;  // x (n, channels, h, w)
  // How it was built, of these families: what its towers need, or another library's description.
  std::shared_ptr<const VitConfig> vit{};
  std::shared_ptr<const EvaConfig> eva{};
  std::shared_ptr<const ClipConfig> clip{};
  // Takes statistics of the inputs from the training samples (n, inputs); empty: none are needed.
  std::function<void(const Tensor& x)> fit_inputs;
};

// model.forward with activations in `compute`, bf16 or the parameters' own dtype: the inputs are
// rounded on the way in; logits and features come back as the parameters are.
Output forward_in(DType compute, const Model&, const Tensor& x, const nn::Call&);

struct Options {
  int64_t classes = 10;  // 0: no classifier, logits = features
  int image = 0;         // side in pixels; 0: the family's default
  // Regularisation of ViTs in training.
  double dropout = 0, drop_path = 0;
};

// name: "resnet20_cifar", "resnet8x4_kd", "vit_tiny_patch16_224", or a ViT spelled out,
// "vit(dim=192,depth=12,heads=3,patch=4,image=32)", or several joined by + (side_by_side.cc).
// "mobilenetv3_small" is short for "mobilenetv3_small_100", which then is the model's name. An
// unknown name throws InputError with the nearest.
Model make_model(const std::string& name, const nn::Scope&, const Options& = {});

struct ModelInfo {
  std::string name, summary;
};
std::vector<ModelInfo> list_models();

// A network with a name; the header of each family declares its list of them.
struct Entry : ModelInfo {
  std::function<Model(const nn::Scope&, const Options&)> make;
};

// What images must look like for a model with these weights: the key "input" of the file's metadata
// ("RGB/255, mean 0.485 0.456 0.406 std 0.229 0.224 0.225, 32x32, bilinear, crop 1"; what comes
// behind std may be missing, the size may come first; of Caffe's networks "BGR 0..255 minus
// 104,117,123; 227x227", of MLPerf's "RGB 0..255 (no scaling)") where it has one, else the model's
// own. Throws InputError for a text that it cannot read.
Preprocessing preprocessing_of(const Model&, const data::Weights* weights = nullptr);
// The statistics of ImageNet; 224 pixels of 256, bilinear.
Preprocessing imagenet_preprocessing();
inline constexpr float kCaffeScale = 1 / 255.f;  // std of networks that want values of 0 to 255
Preprocessing cifar100_preprocessing();          // the statistics of CIFAR-100; 32 pixels
std::string describe(const Preprocessing&);      // that text, for a checkpoint's metadata

// A multi-layer perceptron for rows of features (or images, flattened): linear layers with ReLU,
// named layers.0 and so on, then `head`; without hidden layers a linear probe. standardize: inputs
// become (x - mean) / deviation (unbiased; 1 where it is 0) of the training samples, kept in the
// buffers input_mean and input_std. Taps: layers.0 and so on, after the ReLU.
struct MlpConfig {
  int64_t inputs = 0;
  std::vector<int64_t> hidden;
  bool standardize = false;
  int64_t classes = 10;
};
Model make_mlp(const MlpConfig&, const nn::Scope&);

// Networks side by side under one linear classifier, `head`, of their features one after the other:
// parameters and taps of network k are named "k.NAME". Images are seen by all of them, and must be
// wanted in the same size and normalisation; of a row each takes its own columns, in this order.
Model make_side_by_side(const std::vector<std::string>& names, const nn::Scope&, const Options&);
// "resnet20_cifar+resnet56_cifar" -> its networks; one name -> that name.
std::vector<std::string> networks_of(const std::string& name);

}  // namespace pupil::models
