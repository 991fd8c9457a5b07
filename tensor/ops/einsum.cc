// Einstein's sum of two operands as one batched matrix product: shared letters that stay are batch
// axes, shared letters that go are summed, letters of one operand are rows or columns.
#include "../../autograd/samples.h"
#include "broadcast.h"

namespace pupil {

namespace {

bool in(const std::string& letters, char c) { return letters.find(c) != std::string::npos; }

struct Operand {
  Tensor value;
  std::string axes;

  // Sums the letters that neither the other operand nor the output has.
  void drop_alone(const std::string& other, const std::string& out) {
    std::vector<int> alone;
    std::string kept;
    for (size_t d = 0; d < axes.size(); d++)
      if (in(other, axes[d]) || in(out, axes[d]))
        kept += axes[d];
      else
        alone.push_back(int(d));
    if (!alone.empty()) value = sum(value, alone);
    axes = kept;
  }
  Tensor in_order(const std::string& wanted) const {
    std::vector<int> order;
    for (char c : wanted) order.push_back(int(axes.find(c)));
    return permute(value, order);
  }
};

}  // namespace

Tensor einsum(const std::string& equation, const Tensor& a, const Tensor& b) {
  std::string text;
  for (char c : equation)
    if (c != ' ') text += c;
  size_t comma = text.find(','), arrow = text.find("->");
  PUPIL_CHECK(comma != std::string::npos && arrow != std::string::npos && comma < arrow,
              "einsum: \"ab,bc->ac\" expected, got \"", equation, "\"");
  Operand left{a, text.substr(0, comma)}, right{b, text.substr(comma + 1, arrow - comma - 1)};
  std::string out = text.substr(arrow + 2);
  std::map<char, int64_t> size;
  for (const Operand* operand : {&left, &right}) {
    const std::string& axes = operand->axes;
    PUPIL_CHECK(axes.size() == size_t(operand->value.rank()), "einsum: \"", axes, "\" for ",
                operand->value.shape());
    for (size_t d = 0; d < axes.size(); d++) {
      int64_t n = operand->value.dim(int(d));
      PUPIL_CHECK(isalpha(uint8_t(axes[d])) && axes.find(axes[d]) == d, "einsum: different letters expected",
                  ", got \"", equation, "\"");
      PUPIL_CHECK(size.emplace(axes[d], n).first->second == n, "einsum: axis ", axes[d], " of ",
                  a.shape(), " and ", b.shape(), " differs");
    }
  }
  for (size_t d = 0; d < out.size(); d++)
    PUPIL_CHECK(size.count(out[d]) && out.find(out[d]) == d && out.size() <= size_t(kMaxRank),
                "einsum: no output \"", out, "\" of ", a.shape(), " and ", b.shape());
  left.drop_alone(right.axes, out);
  right.drop_alone(left.axes, out);
  std::string batch, summed, rows, columns;
  for (char c : left.axes) (!in(right.axes, c) ? rows : in(out, c) ? batch : summed) += c;
  for (char c : right.axes)
    if (!in(left.axes, c)) columns += c;
  auto count = [&](const std::string& axes) {
    int64_t n = 1;
    for (char c : axes) n *= size[c];
    return n;
  };
  Operand y{
      matmul(view(left.in_order(batch + rows + summed), {count(batch), count(rows), count(summed)}),
             view(right.in_order(batch + summed + columns),
                  {count(batch), count(summed), count(columns)})),
      batch + rows + columns};
  std::vector<int64_t> dims;
  for (char c : y.axes) dims.push_back(size[c]);
  y.value = view(y.value, Shape(std::span<const int64_t>(dims)));
  return y.in_order(out);
}

PUPIL_SAMPLES(einsum) {
  auto by = [](std::string equation) {
    return [=](auto& v) { return einsum(equation, v[0], v[1]); };
  };
  s.add("scores", {{2, 3, 4, 5}, {2, 3, 6, 5}}, by("bhqd,bhkd->bhqk"));
  s.add("outer products of rows", {{3, 4}, {3, 5}}, by("bi,bj->bij"));
  s.add("swapped output", {{3, 4}, {4, 5}}, by("ij, jk -> ki"));
  s.add("to a scalar", {{3, 4}, {4, 3}}, by("ij,ji->"));
  s.add("elementwise", {{3, 4}, {4, 3}}, by("ij,ji->ij"));
  s.add("alone and summed", {{2, 3, 4}, {4, 5}}, by("aij,jk->ik"));
  s.add("middle axes", {{2, 3, 4}, {3, 2, 5}}, by("abc,bad->dca"));
  s.add("transposed", {{4, 3}, {4, 5}}, [](auto& v) {
    return einsum("ij,jk->ik", permute(v[0], {1, 0}), v[1]);
  });
  s.add("scalars", {{}, {}}, by(",->"));
  s.add("empty", {{0, 4}, {4, 5}}, by("ij,jk->ik"));
  s.add_error("sizes", {{3, 4}, {5, 6}}, by("ij,jk->ik"));
  s.add_error("letters", {{3, 4}, {4, 5}}, by("ijl,jk->ik"));
  s.add_error("diagonal", {{3, 3}, {3, 5}}, by("ii,ij->ij"));
  s.add_error("output", {{3, 4}, {4, 5}}, by("ij,jk->iz"));
  s.add_error("no output", {{3, 4}, {4, 5}}, by("ij,jk"));
}

}  // namespace pupil
