// Every sample of every op and method on the device, value and gradients, against the float64 loops
// of the CPU. Runs under the emulation (README.md); nothing here depends on it.
//   device_suite [OP...]     no name: all ops
#include <algorithm>
#include <cstdio>
#include <set>

#include "autograd/samples.h"
#include "tensor/launch.h"
#include "tensor/memory.h"
#include "tensor/ops.h"
#include "tensor/random.h"

namespace pupil {
namespace {

constexpr Device kCuda{DeviceKind::cuda};

// Largest sum of squared errors as a share of the sum of squared values. A float32 sum of a few
// hundred terms is off by about 1e-6 of its size, a float64 one by 1e-15.
double tolerance(DType dtype) { return dtype == DType::f64 ? 1e-26 : 1e-11; }

struct Result {
  std::vector<double> value;
  std::vector<std::vector<double>> gradients;  // empty where none arrived
};

std::vector<double> random_values(const Shape& shape, uint64_t seed, double low, double high) {
  std::vector<double> values(size_t(shape.numel()));
  for (size_t i = 0; i < values.size(); i++)  // float32 numbers, so that all dtypes see the same
    values[i] = float(low + (high - low) * double(uniform({seed, 0, 0}, int64_t(i))));
  return values;
}

Result run(const test::Sample& sample, DType dtype, Device device) {
  std::vector<Tensor> inputs;
  for (size_t k = 0; k < sample.inputs.size(); k++) {
    auto values = random_values(sample.inputs[k], 1 + k, sample.options.low, sample.options.high);
    inputs.push_back(from(values, sample.inputs[k], dtype).to(device));
    const std::vector<int>& constants = sample.options.constants;
    if (std::find(constants.begin(), constants.end(), int(k)) == constants.end())
      inputs.back().requires_grad_();
  }
  Tensor y = sample.f(inputs);
  PUPIL_CHECK(y.device() == device, "the output is on another device than the inputs");
  Result result{y.values(), {}};
  if (!y.requires_grad()) return result;
  backward(y, from(random_values(y.shape(), 1000, -1, 1), y.shape(), y.dtype()).to(device));
  for (auto& input : inputs)
    result.gradients.push_back(input.grad() ? input.grad().values() : std::vector<double>());
  return result;
}

// "" or what is wrong.
std::string compare(const std::vector<double>& got, const std::vector<double>& expected,
                    double limit) {
  if (got.size() != expected.size())
    return concat(got.size(), " values instead of ", expected.size());
  double error = 0, size = 0;
  for (size_t i = 0; i < got.size(); i++) {
    if (got[i] == expected[i]) continue;  // equal infinities
    error += (got[i] - expected[i]) * (got[i] - expected[i]);
  }
  for (double v : expected)
    if (std::isfinite(v)) size += v * v;
  if (error <= limit * std::max(size, 1e-3 * double(got.size()))) return "";
  return concat("squared error ", error, " for squared values ", size);
}

std::string check(const test::Sample& sample, DType dtype) {
  Result expected, got;
  try {
    expected = run(sample, DType::f64, Device{});
    got = run(sample, dtype, kCuda);
  } catch (const std::exception& e) {
    return e.what();
  }
  double limit = tolerance(dtype);
  if (auto wrong = compare(got.value, expected.value, limit); !wrong.empty())
    return "value: " + wrong;
  if (got.gradients.size() != expected.gradients.size()) return "gradients on one device only";
  for (size_t k = 0; k < got.gradients.size(); k++)
    if (auto wrong = compare(got.gradients[k], expected.gradients[k], limit); !wrong.empty())
      return concat("gradient of input ", k, ": ", wrong);
  return "";
}

// A suite that cannot fail proves nothing: two ops that are wrong by 1e-4 on the device only.
void prove_that_checks_fail() {
  auto off = [](const Tensor& x) { return x.device().is_cuda() ? 1.0001 : 1.0; };
  test::Sample wrong_value{"planted", "value", {{64}}, {}, {}};
  wrong_value.f = [=](auto& v) { return scale(v[0], off(v[0])); };
  test::Sample wrong_gradient = wrong_value;
  wrong_gradient.f = [=](auto& v) {
    return add(scale(v[0], off(v[0])), scale(v[0].detach(), 1 - off(v[0])));
  };
  for (DType dtype : {DType::f32, DType::f64}) {
    PUPIL_CHECK(check(wrong_value, dtype).starts_with("value"), "a wrong value was not noticed");
    PUPIL_CHECK(check(wrong_gradient, dtype).starts_with("gradient"),
                "a wrong gradient was not noticed");
  }
}

int suite(const std::set<std::string>& wanted) {
  prove_that_checks_fail();
  int passed = 0, failed = 0;
  std::set<std::string> ops;
  for (auto& sample : test::samples()) {
    if (sample.must_throw || (!wanted.empty() && !wanted.count(sample.op))) continue;
    ops.insert(sample.op);
    for (DType dtype : {DType::f32, DType::f64}) {
      std::string wrong = check(sample, dtype);
      wrong.empty() ? passed++ : failed++;
      if (!wrong.empty())
        printf("FAILED %s, %s, %s: %s\n", sample.op.c_str(), sample.name.c_str(), name_of(dtype),
               wrong.c_str());
    }
  }
  printf("device suite: %zu ops; %d passed, %d failed, 0 skipped\n", ops.size(), passed, failed);
  return failed || !passed ? 1 : 0;
}

}  // namespace
}  // namespace pupil

int main(int argc, char** argv) {
  pupil::set_poison(true);
  pupil::set_redzones(true);
  int status = pupil::suite({argv + 1, argv + argc});
  // Blocks that were freed last are still queued on the stream.
  if (cudaStreamSynchronize(pupil::cuda_stream()) != cudaSuccess) return 1;
  return status;
}
