// Convolutions of which each is the only reader of the one before, in bands of rows: a thread takes
// a band of the result through all of them, so that what lies between two stays in its cache. A
// block of MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) makes six times as many channels as
// it takes and gives; where they were written to memory and read again, that was most of its time.
#include <omp.h>

#include <map>

#include "../launch.h"
#include "convolution.h"
#include "depthwise.h"
#include "image.h"

namespace pupil {
namespace {

using onednn::Convolution;
using onednn::ThreadConvolution;

constexpr size_t kBandBytes = 1 << 20;  // a core's second cache, or half of it

size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }
size_t row_of_x(const Convolution& c) {
  return size_t(c.shape.channels * c.shape.width) * size_of(c.dtype);
}
size_t row_of_y(const Convolution& c) {
  return size_t(c.shape.outputs * c.shape.out_width) * size_of(c.dtype);
}

// The rows [begin, end) of the result, of one image.
struct Band {
  std::vector<Convolution> layers;  // each cut to the rows that it needs for them
  int64_t from, to;                 // the band's first rows of x and of the result
  size_t kind = 0;                  // bands of one kind have the same sizes

  Band(const std::vector<Convolution>& whole, int64_t begin, int64_t end) : to(begin) {
    for (auto layer = whole.rbegin(); layer != whole.rend(); ++layer) {
      Convolution conv = *layer;
      ConvGeometry& s = conv.shape;
      int64_t top = begin * s.stride_h - s.padding_h, reach = s.dilation_h * (s.kernel_height - 1);
      int64_t bottom = (end - 1) * s.stride_h - s.padding_h + reach + 1;
      s.batch = 1;
      s.out_height = end - begin;
      begin = std::max<int64_t>(top, 0);
      end = std::min(bottom, s.height);
      s.padding_h = begin - top;
      s.height = end - begin;
      layers.insert(layers.begin(), conv);
    }
    from = begin;
  }
  size_t bytes_of_result(size_t layer) const {
    return aligned(size_t(layers[layer].shape.out_height) * row_of_y(layers[layer]));
  }
  size_t bytes_between() const {
    size_t bytes = 0;
    for (size_t i = 0; i + 1 < layers.size(); i++) bytes += bytes_of_result(i);
    return bytes;
  }
  std::vector<int64_t> sizes() const {
    std::vector<int64_t> sizes;
    for (auto& [s, x, y, dtype] : layers)
      sizes.insert(sizes.end(), {s.height, s.padding_h, s.out_height});
    return sizes;
  }
};

// The bands of an image, of equal height but for the last; none where one layer after the other is
// as good: where an image fits into the cache, or bands would overlap by much.
std::vector<Band> cut_into_bands(const std::vector<Convolution>& whole) {
  for (auto& [s, x, y, dtype] : whole)  // every row of a result needs one of x
    if (s.padding_h > s.dilation_h * (s.kernel_height - 1)) return {};
  int64_t height = whole.back().shape.out_height, rows = height;
  auto bytes_of = [&](int64_t count) {  // a band in the middle
    int64_t begin = (height - count) / 2;
    return Band(whole, begin, begin + count).bytes_between();
  };
  while (rows > 1 && bytes_of(rows) > kBandBytes) rows--;
  int64_t count = (height + rows - 1) / rows;
  if (count == 1) return {};
  rows = (height + count - 1) / count;
  std::vector<Band> bands;
  std::map<std::vector<int64_t>, size_t> kinds;
  size_t bytes = 0;
  for (int64_t begin = 0; begin < height; begin += rows) {
    Band& band = bands.emplace_back(whole, begin, std::min(height, begin + rows));
    band.kind = kinds.emplace(band.sizes(), kinds.size()).first->second;
    bytes += band.bytes_between();
  }
  if (2 * bytes > 3 * bytes_of(height)) return {};
  return bands;
}

class DepthwiseOfThread final : public ThreadConvolution {
 public:
  DepthwiseOfThread(const ConvGeometry& s, Tensor weights, const float* bias, Activation activation)
      : shape_(s), weights_(std::move(weights)), bias_(bias), activation_(activation) {}
  size_t scratch_bytes() const override { return 0; }
  std::unique_ptr<ThreadConvolution> another() const override {
    return std::make_unique<DepthwiseOfThread>(*this);
  }
  void run(const void* x, const void*, void* y, void*) override {
    depthwise::forward(shape_, static_cast<const float*>(x), weights_.data<float>(), bias_,
                       activation_, static_cast<float*>(y));
  }

 private:
  ConvGeometry shape_;
  Tensor weights_;
  const float* bias_;
  Activation activation_;
};

using Layers = std::vector<std::unique_ptr<ThreadConvolution>>;

// What runs the bands of a kind, or nothing.
Layers runners(const Band& band, const std::vector<ConvLayer>& layers, const void* residual) {
  Layers all;
  for (size_t i = 0; i < layers.size(); i++) {
    const ConvGeometry& s = band.layers[i].shape;
    onednn::Tail tail{i + 1 < layers.size() ? nullptr : residual, layers[i].activation};
    const float *weight = layers[i].weight.data<float>(),
                *bias = data_or_null<float>(layers[i].bias);
    if (depthwise::has_forward(band.layers[i]) && !tail.residual) {
      Tensor packed = empty({depthwise::packed_weights(s)});
      depthwise::pack_weights(s, weight, packed.data<float>());
      all.push_back(std::make_unique<DepthwiseOfThread>(s, packed, bias, tail.activation));
    } else {
      PreparedKernels* prepared = layers[i].prepared.get();
      all.push_back(onednn::thread_convolution(band.layers[i], weight, bias, tail,
                                               prepared ? prepared->packed.get() : nullptr));
    }
    if (!all.back()) return {};
  }
  return all;
}

bool in_bands(const std::vector<Convolution>& whole, const std::vector<Band>& bands,
              const std::vector<ConvLayer>& layers, const char* x, const char* residual, char* y) {
  std::vector<Layers> kinds;
  size_t scratch = 0, between = 0;
  for (const Band& band : bands) {
    between = std::max(between, band.bytes_between());
    if (band.kind < kinds.size()) continue;
    kinds.push_back(runners(band, layers, residual));
    if (kinds.back().empty()) return false;
    for (auto& layer : kinds.back()) scratch = std::max(scratch, aligned(layer->scratch_bytes()));
  }
  size_t own_bytes = scratch + between;
  Tensor memory = empty({cpu_threads() * int64_t(own_bytes)}, DType::u8);
  const ConvGeometry &first = whole.front().shape, &last = whole.back().shape;
  size_t x_row = row_of_x(whole.front()), y_row = row_of_y(whole.back());
  int64_t count = int64_t(bands.size());
#pragma omp parallel num_threads(cpu_threads())
  {
    char* own = static_cast<char*>(memory.raw()) + own_bytes * size_t(omp_get_thread_num());
    std::vector<Layers> mine(kinds.size());
    for (size_t kind = 0; kind < kinds.size(); kind++)
      for (auto& layer : kinds[kind]) mine[kind].push_back(layer->another());
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < first.batch * count; task++) {
      const Band& band = bands[size_t(task % count)];
      int64_t image = task / count;
      size_t result = size_t(image * last.out_height + band.to) * y_row;
      const char* from = x + size_t(image * first.height + band.from) * x_row;
      char* place = own + scratch;
      for (size_t i = 0; i < layers.size(); i++) {
        bool ends = i + 1 == layers.size();
        char* to = ends ? y + result : place;
        mine[band.kind][i]->run(from, ends && residual ? residual + result : nullptr, to, own);
        place += band.bytes_of_result(i);
        from = to;
      }
    }
  }
  return true;
}

}  // namespace

Tensor conv2d_chain(const Tensor& x, const std::vector<ConvLayer>& layers, const Tensor& residual) {
  NoGrad unrecorded;
  auto one_by_one = [&] {
    Tensor y = x;
    for (const ConvLayer& layer : layers)
      y = conv2d_tail(y, layer, &layer == &layers.back() ? residual : Tensor());
    return y;
  };
  bool fits = x.layout() == Layout::nhwc && x.numel() && cpu_fast(acc_dtype(x.dtype()), x.device());
  // The way taken depends on the number of threads, and bits on the way.
  if (layers.size() < 2 || !fits || observed() || exact_mode()) return one_by_one();
  std::vector<Convolution> whole;
  std::vector<ConvLayer> wide = layers;
  Shape shape = x.shape();
  for (auto& [weight, bias, options, activation, prepared] : wide) {
    if (!onednn::follows_convolution(activation)) return one_by_one();
    ConvGeometry s = conv_geometry(shape, x.dtype(), weight, bias, options);
    whole.push_back({s, Layout::nhwc, Layout::nhwc, x.dtype()});
    shape = {s.batch, s.outputs, s.out_height, s.out_width};
    weight = weight.contiguous().to(acc_dtype(x.dtype()));
    if (bias) bias = bias.contiguous().to(acc_dtype(x.dtype()));
  }
  check_residual(residual, whole.back().shape, x.dtype());
  std::vector<Band> bands = cut_into_bands(whole);
  if (bands.empty() || shape[0] * int64_t(bands.size()) < cpu_threads()) return one_by_one();
  Tensor y = empty_image(shape, x.dtype(), Layout::nhwc);
  Tensor added = residual ? in_layout(residual, Layout::nhwc) : residual;
  const void* summand = added ? added.raw() : nullptr;
  bool done = in_bands(whole, bands, wide, static_cast<const char*>(x.raw()),
                       static_cast<const char*>(summand), static_cast<char*>(y.raw()));
  return done ? y : one_by_one();
}

}  // namespace pupil
