// Tensors side by side; every gradient goes back to where the values came from.
#include <numeric>

#include "../../autograd/samples.h"
#include "../launch.h"
#include "broadcast.h"
#include "part.h"

namespace pupil {

Tensor cat(const std::vector<Tensor>& parts, int axis) {
  PUPIL_CHECK(!parts.empty(), "cat: no parts");
  // As in PyTorch, a part of shape (0) fits beside anything.
  auto counts = [](const Tensor& t) { return !(t.rank() == 1 && t.dim(0) == 0); };
  const Tensor* first = &parts[0];
  for (auto& t : parts)
    if (counts(t)) {
      first = &t;
      break;
    }
  int d = checked_axis("cat", first->shape(), axis);
  Shape shape = first->shape();
  shape[d] = 0;
  for (auto& t : parts) {
    if (!counts(t)) continue;
    Shape other = t.shape();
    if (other.rank == shape.rank) other[d] = shape[d];
    PUPIL_CHECK(other == shape && t.dtype() == first->dtype(), "cat: ", t.shape(), " ",
                name_of(t.dtype()), " beside ", first->shape(), " ", name_of(first->dtype()),
                " along axis ", axis);
    shape[d] += t.dim(d);
  }
  Tensor y = empty(shape, first->dtype(), first->device());
  std::vector<int64_t> sizes;  // along the axis; -1: a part of shape (0)
  int64_t begin = 0;
  for (auto& t : parts) {
    sizes.push_back(counts(t) ? t.dim(d) : -1);
    if (sizes.back() <= 0) continue;
    copy_into(part(y, d, begin, sizes.back()), t.contiguous());
    begin += sizes.back();
  }
  return record("cat", y, parts, {{"axis", d}}, [sizes, d](Backward& b) {
    int64_t at = 0;
    for (size_t k = 0; k < sizes.size(); k++) {
      int64_t size = sizes[k];
      b[int(k)].give(size < 0 ? zeros({0}, b.gy.dtype(), b.gy.device()) : part(b.gy, d, at, size));
      at += std::max<int64_t>(size, 0);
    }
  });
}

Tensor stack(const std::vector<Tensor>& parts, int axis) {
  PUPIL_CHECK(!parts.empty(), "stack: no parts");
  Shape shape = parts[0].shape();
  int d = axis < 0 ? axis + shape.rank + 1 : axis;
  PUPIL_CHECK(d >= 0 && d <= shape.rank && shape.rank < kMaxRank, "stack: axis ", axis,
              " of parts ", shape);
  for (auto& t : parts) PUPIL_CHECK(t.shape() == shape, "stack: ", t.shape(), " beside ", shape);
  for (int k = shape.rank++; k > d; k--) shape[k] = shape[k - 1];
  shape[d] = 1;
  std::vector<Tensor> layers;
  for (auto& t : parts) layers.push_back(view(t, shape));
  return cat(layers, d);
}

Tensor roll(const Tensor& x, const std::vector<int64_t>& shifts, const std::vector<int>& axes) {
  if (axes.empty() && shifts.size() == 1)
    return view(roll(view(x, {x.numel()}), shifts, {0}), x.shape());
  PUPIL_CHECK(shifts.size() == axes.size(), "roll: ", shifts.size(), " shifts for ", axes.size(),
              " axes of ", x.shape());
  Tensor y = x;
  for (size_t k = 0; k < axes.size(); k++) {
    int d = checked_axis("roll", x.shape(), axes[k]);
    int64_t n = x.dim(d), shift = n ? (shifts[k] % n + n) % n : 0;
    if (shift) y = cat({slice(y, d, n - shift, n), slice(y, d, 0, n - shift)}, d);
  }
  return y;
}

Tensor flip(const Tensor& x, const std::vector<int>& axes) {
  if (axes.empty()) return x;
  ReducedAxes flipped = reduced_axes("flip", x.shape(), axes);
  Tensor y = x;
  for (int d = 0; d < x.rank(); d++) {
    if (!flipped.marked[d]) continue;
    std::vector<int64_t> reversed(size_t(x.dim(d)));
    std::iota(reversed.rbegin(), reversed.rend(), 0);
    y = index_select(y, from(reversed, {x.dim(d)}).to(x.device()), d);
  }
  return y;
}

PUPIL_SAMPLES(cat) {
  s.add("rows", {{2, 3}, {1, 3}}, [](auto& v) { return cat(v, 0); });
  s.add("columns", {{2, 3}, {2, 1}, {2, 2}}, [](auto& v) { return cat(v, -1); });
  s.add("middle", {{2, 1, 3}, {2, 2, 3}}, [](auto& v) { return cat(v, 1); });
  s.add("empty parts", {{2, 3}, {0}, {0, 3}}, [](auto& v) { return cat(v, 0); });
  s.add("one part", {{1}}, [](auto& v) { return cat(v, 0); });
  s.add("the same twice", {{2, 3}}, [](auto& v) { return cat({v[0], v[0]}, 1); });
  s.add_error("shapes", {{2, 3}, {3, 2}}, [](auto& v) { return cat(v, 0); });
}

PUPIL_SAMPLES(stack) {
  s.add("rows", {{3}, {3}}, [](auto& v) { return stack(v, 0); });
  s.add("middle", {{2, 3}, {2, 3}, {2, 3}}, [](auto& v) { return stack(v, 1); });
  s.add("last", {{2, 3}, {2, 3}}, [](auto& v) { return stack(v, -1); });
  s.add("scalars", {{}, {}}, [](auto& v) { return stack(v, 0); });
  s.add("one element", {{1}}, [](auto& v) { return stack(v, 1); });
  s.add("empty", {{0, 3}, {0, 3}}, [](auto& v) { return stack(v, 1); });
  s.add_error("shapes", {{2, 3}, {1, 3}}, [](auto& v) { return stack(v, 0); });
  s.add_error("axis", {{2}, {2}}, [](auto& v) { return stack(v, 2); });
}

PUPIL_SAMPLES(roll) {
  s.add("two axes", {{2, 4, 5}}, [](auto& v) { return roll(v[0], {1, -2}, {1, 2}); });
  s.add("one axis twice", {{5}}, [](auto& v) { return roll(v[0], {1, 7}, {0, 0}); });
  s.add("flat", {{2, 3}}, [](auto& v) { return roll(v[0], {2}, {}); });
  s.add("transposed", {{4, 3}}, [](auto& v) { return roll(permute(v[0], {1, 0}), {1}, {0}); });
  s.add("one element", {{1}}, [](auto& v) { return roll(v[0], {3}, {0}); });
  s.add("empty", {{0, 3}}, [](auto& v) { return roll(v[0], {1, 1}, {0, 1}); });
  s.add_error("axis", {{2, 3}}, [](auto& v) { return roll(v[0], {1}, {2}); });
  s.add_error("counts", {{2, 3}}, [](auto& v) { return roll(v[0], {1, 1}, {0}); });
}

PUPIL_SAMPLES(flip) {
  s.add("width", {{2, 2, 3, 4}}, [](auto& v) { return flip(v[0], {3}); });
  s.add("two axes", {{2, 3, 4}}, [](auto& v) { return flip(v[0], {0, -1}); });
  s.add("no axis", {{3}}, [](auto& v) { return flip(v[0], {}); });
  s.add("one element", {{1}}, [](auto& v) { return flip(v[0], {0}); });
  s.add("empty", {{0, 3}}, [](auto& v) { return flip(v[0], {0, 1}); });
  s.add_error("axis", {{2, 3}}, [](auto& v) { return flip(v[0], {2}); });
  s.add_error("axis twice", {{2, 3}}, [](auto& v) { return flip(v[0], {1, -1}); });
}

}  // namespace pupil
