#include "squeezenet.h"

namespace pupil::models {
namespace {

// torchvision draws uniformly within sqrt(6 / inputs of an output).
nn::Conv2d squeeze_convolution(const nn::Scope& scope, int64_t in, int64_t out, int kernel,
                               int stride = 1, int padding = 0) {
  double bound = std::sqrt(6.0 / double(in * kernel * kernel));
  return nn::Conv2d(scope, in, out, kernel, {stride, padding}, true, {nn::Init::uniform, bound});
}

struct Fire {
  nn::Conv2d squeeze, expand1, expand3;

  Fire(const nn::Scope& scope, const char* squeeze_name, int64_t in, int64_t squeezed,
       int64_t expanded)
      : squeeze(squeeze_convolution(scope / squeeze_name, in, squeezed, 1)),
        expand1(squeeze_convolution(scope / "expand1x1", squeezed, expanded, 1)),
        expand3(squeeze_convolution(scope / "expand3x3", squeezed, expanded, 3, 1, 1)) {}
  Tensor operator()(const Tensor& x) const {
    Tensor y = relu(squeeze(x));
    return relu(cat({expand1(y), expand3(y)}, 1));
  }
};

struct Squeezenet {
  bool caffe;
  nn::Conv2d stem;
  std::vector<Fire> fires;
  std::optional<nn::Conv2d> classifier;

  Squeezenet(bool caffe, int64_t classes, const nn::Scope& scope)
      : caffe(caffe),
        stem(squeeze_convolution(scope / (caffe ? "conv1" : "features.0"), 3, 64, 3, 2)) {
    constexpr int place[]{3, 4, 6, 7, 9, 10, 11, 12};  // torchvision counts ReLUs and poolings
    int64_t in = 64;
    for (int i = 0; i < 8; i++) {
      int64_t squeezed = 16 * (i / 2 + 1), expanded = 4 * squeezed;
      fires.emplace_back(scope / (caffe ? concat("fire", i + 2) : concat("features.", place[i])),
                         caffe ? "squeeze1x1" : "squeeze", in, squeezed, expanded);
      in = 2 * expanded;
    }
    if (classes)
      classifier.emplace(scope / head(caffe), in, classes, 1, ConvOptions{.padding = caffe ? 1 : 0},
                         true, nn::Init{nn::Init::normal, 0.01});
  }
  static const char* head(bool caffe) { return caffe ? "conv10" : "classifier.1"; }

  Output operator()(const Tensor& images, const nn::Call& call) {
    constexpr double kDropout = 0.5;
    Tensor x = relu(stem(caffe ? flip(images, {1}) : images));
    for (size_t i = 0; i < fires.size(); i++) {
      if (i == 0 || i == 2 || i == 4) x = max_pool2d(x, {.kernel = 3, .ceil_mode = true});
      x = fires[i](x);
      call.see(concat("fire", i + 2), x);
    }
    Tensor pooled = global_avg_pool(x);
    call.see("pooled", pooled);
    if (!classifier) return {pooled, pooled};
    return {global_avg_pool(relu((*classifier)(call.dropout(x, kDropout)))), pooled};
  }
};

}  // namespace

Model make_squeezenet(bool caffe, int64_t classes, const nn::Scope& scope) {
  auto net = std::make_shared<Squeezenet>(caffe, classes, scope);
  Model model;
  model.classes = classes;
  model.width = 512;
  model.head = Squeezenet::head(caffe);
  model.input = imagenet_preprocessing();
  if (caffe)
    model.input = {227,
                   3,
                   {123 * kCaffeScale, 117 * kCaffeScale, 104 * kCaffeScale},
                   {kCaffeScale, kCaffeScale, kCaffeScale},
                   Filter::bilinear,
                   227 / 256.0};
  for (size_t i = 0; i < net->fires.size(); i++) model.taps.push_back(concat("fire", i + 2));
  model.taps.push_back("pooled");
  model.forward = [net](const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
  return model;
}

std::vector<Entry> squeezenets() {
  std::vector<Entry> all;
  for (bool caffe : {false, true})
    all.push_back(
        {{caffe ? "squeezenet1_1.caffe" : "squeezenet1_1",
          concat("SqueezeNet 1.1", caffe ? " of Caffe, 227x227" : ", 224x224", " images")},
         [=](const nn::Scope& scope, const Options& options) {
           return make_squeezenet(caffe, options.classes, scope);
         }});
  return all;
}

}  // namespace pupil::models
