// Mixup, cutmix and erasing of whole batches.
#include <algorithm>
#include <set>

#include "image.h"

namespace pupil::data {
namespace {

// own[i] of row k becomes mixed(own[i], that of row partner[k]): along each cycle of the
// permutation, so that only the cycle's first row is kept.
template <class T, class F>
void along_cycles(T* first, int64_t row, const std::vector<int64_t>& partner, F&& mixed) {
  std::vector<bool> done(partner.size());
  std::vector<T> kept;
  for (size_t start = 0; start < partner.size(); start++) {
    if (done[start] || partner[start] == int64_t(start)) continue;
    kept.assign(first + int64_t(start) * row, first + int64_t(start + 1) * row);
    for (size_t k = start; !done[k]; k = size_t(partner[k])) {
      done[k] = true;
      size_t other = size_t(partner[k]);
      mixed(first + int64_t(k) * row, done[other] ? kept.data() : first + int64_t(other) * row);
    }
  }
}

template <class T>
void mix_rows(const Mix& mix, const std::vector<int64_t>& partner, Tensor& t) {
  int64_t row = t.numel() / t.dim(0);
  T* first = t.data<T>();
  if (!mix.cut) {
    // Zhang et al. 2018 (arXiv 1710.09412), eq. 1
    T own = T(mix.lambda), other = T(1 - mix.lambda);
    return along_cycles(first, row, partner, [&](T* a, const T* b) {
      for (int64_t i = 0; i < row; i++) a[i] = own * a[i] + other * b[i];
    });
  }
  int64_t channels = t.dim(1), height = t.dim(2), width = t.dim(3);
  Box box = cut_box(mix, int(height), int(width));
  along_cycles(first, row, partner, [&](T* a, const T* b) {
    for (int64_t c = 0; c < channels; c++)
      for (int y = box.top; y < box.top + box.height; y++) {
        int64_t at = (c * height + y) * width + box.left;
        std::copy_n(b + at, box.width, a + at);
      }
  });
}

}  // namespace

Box cut_box(const Mix& mix, int height, int width) {
  // Yun et al. 2019 (arXiv 1905.04899), eq. 2: a box with the share 1 - lambda of the area.
  double side = std::sqrt(1 - mix.lambda);
  int cut_height = int(height * side), cut_width = int(width * side);
  int y = int(mix.y * height), x = int(mix.x * width);
  int top = std::max(y - cut_height / 2, 0), left = std::max(x - cut_width / 2, 0);
  int bottom = std::min(y + (cut_height + 1) / 2, height);
  int right = std::min(x + (cut_width + 1) / 2, width);
  return {top, left, bottom - top, right - left};
}

double apply_mix(const Mix& mix, const std::vector<int64_t>& partner, const Tensor& labels,
                 std::vector<Tensor>& x, Tensor& targets, double smoothing) {
  std::vector<bool> met(partner.size());
  for (int64_t k : partner) {
    if (k < 0 || k >= int64_t(partner.size()) || met[size_t(k)])
      fail_input("mix: the partners of ", partner.size(), " samples are not a permutation");
    met[size_t(k)] = true;
  }
  double lambda = mix.lambda;
  if (mix.cut) {  // of what is left after clipping
    int height = int(x[0].dim(2)), width = int(x[0].dim(3));
    Box box = cut_box(mix, height, width);
    lambda = 1 - double(box.height) * box.width / (double(height) * width);
  }
  std::set<const void*> seen;
  for (Tensor& t : x) {
    if (!seen.insert(t.raw()).second) continue;
    if (t.dtype() == DType::f64)
      mix_rows<double>(mix, partner, t);
    else
      mix_rows<float>(mix, partner, t);
  }
  auto fill = [&](auto* row) {
    using T = std::remove_reference_t<decltype(*row)>;
    int64_t classes = targets.dim(1);
    std::fill_n(row, int64_t(partner.size()) * classes, T(smoothing / double(classes)));
    for (size_t k = 0; k < partner.size(); k++, row += classes) {
      row[labels.data<int64_t>()[k]] += T(lambda * (1 - smoothing));
      row[labels.data<int64_t>()[partner[k]]] += T((1 - lambda) * (1 - smoothing));
    }
  };
  if (targets.dtype() == DType::f64)
    fill(targets.data<double>());
  else
    fill(targets.data<float>());
  return lambda;
}

void erase(Tensor& x, const Tensor& value, int64_t top, int64_t left) {
  int rank = x.rank();
  if (rank < 2 || value.rank() != rank || value.dtype() != x.dtype() || top < 0 || left < 0 ||
      top + value.dim(rank - 2) > x.dim(rank - 2) || left + value.dim(rank - 1) > x.dim(rank - 1) ||
      value.numel() * x.dim(rank - 2) * x.dim(rank - 1) !=
          x.numel() * value.dim(rank - 2) * value.dim(rank - 1))
    fail_input("erase: a box of ", value.shape(), " at row ", top, ", column ", left,
               " does not lie in ", x.shape());
  int64_t height = value.dim(rank - 2), width = value.dim(rank - 1), rows = x.dim(rank - 2);
  size_t size = size_of(x.dtype());
  auto at = [&](const Tensor& t, int64_t i) {
    return static_cast<char*>(t.raw()) + size_t(i) * size;
  };
  for (int64_t plane = 0; width && plane < value.numel() / std::max<int64_t>(height * width, 1);
       plane++)
    for (int64_t y = 0; y < height; y++)
      memcpy(at(x, (plane * rows + top + y) * x.dim(rank - 1) + left),
             at(value, (plane * height + y) * width), size_t(width) * size);
}

}  // namespace pupil::data
