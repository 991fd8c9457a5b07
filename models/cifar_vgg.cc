#include "cifar_vgg.h"

namespace pupil::models {
namespace {

constexpr int64_t kWidths[]{64, 128, 256, 512, 512};

struct CifarVgg {
  struct Unit {
    nn::Conv2d conv;
    nn::BatchNorm norm;
  };
  std::vector<Unit> blocks[5];
  std::optional<nn::Linear> classifier;

  CifarVgg(int convolutions, int64_t classes, const nn::Scope& scope) {
    int64_t in = 3;
    for (int block = 0; block < 5; block++)
      for (int i = 0; i < convolutions; i++) {
        nn::Scope at = scope / concat("block", block);  // counts the ReLUs between too
        int64_t out = kWidths[block];
        blocks[block].push_back({nn::Conv2d(at / (3 * i), in, out, 3, {.padding = 1}, true,
                                            nn::kaiming_normal(9 * out)),
                                 nn::BatchNorm(at / (3 * i + 1), out)});
        in = out;
      }
    if (classes)
      classifier.emplace(scope / "classifier", in, classes, nn::Init{nn::Init::normal, 0.01},
                         nn::Init{nn::Init::zeros});
  }

  Output operator()(const Tensor& images, const nn::Call& call) {
    Tensor x = images;
    for (int block = 0; block < 5; block++) {
      std::string number = std::to_string(block);
      bool announced = block > 0 && call.wants("pre" + number);
      for (Unit& unit : blocks[block]) {
        bool bare = announced && &unit == &blocks[block].back();
        x = unit.norm(unit.conv(x), call, bare ? Activation::none : Activation::relu);
      }
      if (announced) {
        call.see("pre" + number, x);
        x = relu(x);
      }
      call.see("f" + number, x);
      if (block < 3) x = max_pool2d(x, {2, 2});
    }
    Tensor pooled = global_avg_pool(x);
    call.see("pooled", pooled);
    return {classifier ? (*classifier)(pooled) : pooled, pooled};
  }
};

}  // namespace

Model make_cifar_vgg(int convolutions, int64_t classes, const nn::Scope& scope) {
  auto net = std::make_shared<CifarVgg>(convolutions, classes, scope);
  Model model;
  model.classes = classes;
  model.width = kWidths[4];
  model.head = "classifier";
  model.input = cifar100_preprocessing();
  model.taps = {"f0", "pre1", "f1", "pre2", "f2", "pre3", "f3", "pre4", "f4", "pooled"};
  model.forward = [net](const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
  return model;
}

std::vector<Entry> cifar_vggs() {
  std::vector<Entry> all;
  for (int convolutions : {1, 2})
    all.push_back(
        {{concat("vgg", 5 * convolutions + 3, "_kd"), "VGG with batch norm, 32x32 images"},
         [=](const nn::Scope& scope, const Options& options) {
           return make_cifar_vgg(convolutions, options.classes, scope);
         }});
  return all;
}

}  // namespace pupil::models
