// Borders around the last axes. A constant border: x is copied into a filled tensor, its gradient
// is a view of the cotangent. Others repeat slices, whose gradients add.
#include <algorithm>

#include "../../autograd/samples.h"
#include "broadcast.h"
#include "image.h"

namespace pupil {

namespace {

Tensor pad_constant(const Tensor& input, const std::vector<int64_t>& amounts, double value) {
  Tensor x = input;
  Shape shape = x.shape();
  Shape begin;
  begin.rank = shape.rank;
  for (size_t k = 0; k < amounts.size(); k += 2) {  // a negative border crops
    int d = x.rank() - 1 - int(k / 2);
    int64_t before = amounts[k], after = amounts[k + 1], n = x.dim(d);
    if (before < 0 || after < 0)
      x = slice(x, d, std::max<int64_t>(0, -before), n - std::max<int64_t>(0, -after));
    begin[d] = std::max<int64_t>(0, before);
    shape[d] = n + before + after;
  }
  Tensor y = full(shape, value, x.dtype(), x.device());
  Shape inside = x.shape(), strides = row_major_strides(shape);
  int64_t offset = 0;
  for (int d = 0; d < shape.rank; d++) offset += begin[d] * strides[d];
  copy_into(alias(y, inside, strides, offset), x.detach());
  return record("pad", y, {x}, {{"begin", begin}, {"value", value}},
                [=](Backward& b) { b[0].give(alias(b.gy.contiguous(), inside, strides, offset)); });
}

// Height and width of an image in a layout, which the result has too.
Tensor pad_image(const Tensor& input, const std::vector<int64_t>& amounts, double value) {
  Layout layout = input.layout();
  Tensor x = memory_of(input, layout);
  int64_t top = amounts[2], left = amounts[0];
  Shape inside = x.shape(), shape = inside;
  shape[-3] += top + amounts[3];
  shape[-2] += left + amounts[1];
  Shape strides = row_major_strides(shape);
  int64_t offset = top * strides[-3] + left * strides[-2];
  Tensor y = full(shape, value, x.dtype(), x.device());
  copy_into(alias(y, inside, strides, offset), x);
  return record("pad", image_of(y, layout), {input},
                {{"begin", Shape{0, 0, top, left}}, {"value", value}}, [=](Backward& b) {
                  Tensor gy = memory_of(in_layout(b.gy, layout), layout);
                  b[0].give(image_of(alias(gy, inside, strides, offset).contiguous(), layout));
                });
}

}  // namespace

Tensor pad(const Tensor& x, const std::vector<int64_t>& amounts, Border border, double value) {
  require_floating("pad", x);
  PUPIL_CHECK(amounts.size() % 2 == 0 && amounts.size() <= 2 * size_t(x.rank()),
              "pad: ", amounts.size(), " amounts for ", x.shape());
  for (size_t k = 0; k < amounts.size(); k += 2) {
    int64_t n = x.dim(x.rank() - 1 - int(k / 2)), before = amounts[k], after = amounts[k + 1];
    int64_t most = border == Border::reflect     ? n - 1
                   : border == Border::replicate ? (n ? INT64_MAX : 0)
                                                 : INT64_MAX;
    PUPIL_CHECK(std::max(before, after) <= most &&
                    n + std::min<int64_t>(before, 0) + std::min<int64_t>(after, 0) >= 0,
                "pad: ", before, " before and ", after, " behind axis ", x.rank() - 1 - int(k / 2),
                " of ", x.shape());
  }
  if (border == Border::constant) {
    bool image = x.layout() != Layout::strided && amounts.size() == 4 &&
                 *std::min_element(amounts.begin(), amounts.end()) >= 0;
    return image ? pad_image(x, amounts, value) : pad_constant(to_strided(x), amounts, value);
  }
  Tensor y = x;
  for (size_t k = 0; k < amounts.size(); k += 2) {
    int d = x.rank() - 1 - int(k / 2);
    int64_t last = x.dim(d) - 1;
    std::vector<int64_t> index;
    for (int64_t i = -amounts[k]; i <= last + amounts[k + 1]; i++) {
      int64_t mirrored = i < 0 ? -i : i > last ? 2 * last - i : i;
      index.push_back(border == Border::reflect ? mirrored : std::clamp<int64_t>(i, 0, last));
    }
    y = index_select(y, from(index, {int64_t(index.size())}).to(x.device()), d);
  }
  return y;
}

PUPIL_SAMPLES(pad) {
  auto by = [](std::vector<int64_t> amounts, Border border = Border::constant, double value = 0) {
    return [=](auto& v) { return pad(v[0], amounts, border, value); };
  };
  s.add("constant", {{2, 2, 3, 4}}, by({0, 1, 2, 1}, Border::constant, 0.5));
  for (int64_t channels : {32, 20})
    s.add(concat("after conv2d ", channels), {{2, 3, 6, 5}, {channels, 3, 3, 3}}, [](auto& v) {
      return to_strided(pad(conv2d(v[0], v[1], Tensor(), {1, 1}), {0, 1, 1, 2}));
    });
  s.add("crop", {{4, 5}}, by({-1, 2, 1, -2}));
  s.add("nothing", {{3}}, by({}));
  s.add("reflect", {{2, 3, 4}}, by({3, 1, 2, 0}, Border::reflect));
  s.add("replicate", {{2, 3, 4}}, by({5, 1, 0, 4, 1, 1}, Border::replicate));
  s.add("transposed", {{4, 3}}, [=](auto& v) { return pad(permute(v[0], {1, 0}), {1, 1}); });
  s.add("one element", {{1}}, by({1, 2}, Border::replicate));
  s.add("empty", {{0, 3}}, by({1, 1, 1, 0}));
  s.add_error("count", {{3}}, by({1}));
  s.add_error("too many axes", {{3}}, by({1, 1, 1, 1}));
  s.add_error("reflect too far", {{3}}, by({3, 0}, Border::reflect));
  s.add_error("replicate nothing", {{0}}, by({1, 0}, Border::replicate));
  s.add_error("crop too much", {{3}}, by({-2, -2}));
}

}  // namespace pupil
