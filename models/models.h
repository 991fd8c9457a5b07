// Networks by name. One .cc per family; parameter names equal the public checkpoint's, so loading
// needs no table.
#pragma once
#include "../nn/nn.h"

namespace pupil::models {

struct Output {
  Tensor logits;    // (n, classes)
  Tensor features;  // (n, width): the vector that enters the final linear layer
};

// What a model expects of its input images; from the checkpoint's metadata or the family's default.
struct Preprocessing {
  int size = 32;  // side in pixels after resizing
  int channels = 3;
  std::vector<float> mean{0, 0, 0}, std{1, 1, 1};  // of pixels in [0, 1]
};

// A value: the layers live in `forward`'s closure, the parameters in the store it was built on.
struct Model {
  std::string name;
  int64_t classes = 0, width = 0;  // width of `features`
  Preprocessing input;
  std::string head;               // parameter prefix of the classifier: "fc", "linear", "head"
  std::vector<std::string> taps;  // names that it announces, in order of the forward pass
  std::function<Output(const Tensor& x, const nn::Call&)> forward;  // x (n, channels, h, w)
};

struct Options {
  int64_t classes = 10;
  int image = 0;  // side in pixels; 0: the family's default
  // Regularisation of ViTs in training.
  double dropout = 0, drop_path = 0;
};

// name: "resnet20_cifar", "resnet8x4_kd", "vit_tiny_patch16_224", or a ViT spelled out,
// "vit(dim=192,depth=12,heads=3,patch=4,image=32)". An unknown name throws InputError with the
// nearest.
Model make_model(const std::string& name, const nn::Scope&, const Options& = {});

struct ModelInfo {
  std::string name, summary;
};
std::vector<ModelInfo> list_models();

// ViT of timm (vision_transformer.py): the constructor names of model.vit in the catalogue.
struct VitConfig {
  int image = 224, patch = 16, dim = 192, depth = 12, heads = 3;
  double mlp_ratio = 4;
  int64_t classes = 1000;  // 0: no head, logits = features
  bool class_token = true, global_pool_avg = false, qkv_bias = true;
  double dropout = 0, drop_path = 0;
};
Model make_vit(const VitConfig&, const nn::Scope&);

}  // namespace pupil::models
