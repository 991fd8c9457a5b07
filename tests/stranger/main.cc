// A program outside Pupil's tree that brings a transfer method of its own, trains with it and
// checks its gradient. With arguments it is `pupil` itself, with that method.
#include <pupil/methods/objective.h>
#include <pupil/models/models.h>
#include <pupil/tensor/memory.h>
#include <pupil/tools/program.h>

#include <cstdio>

using namespace pupil;

namespace {

// Mean squared difference of the two soft-maxes at temperature T.
Tensor soft_match(const Tensor& student, const Tensor& teacher, double temperature) {
  return mean(square(sub(softmax(student, temperature), softmax(teacher, temperature))));
}

methods::Method soft_match_method() {
  methods::Method method;
  method.name = "soft_match";
  method.summary = "mean squared difference of the soft-maxes";
  method.source = "tests/stranger/main.cc";
  method.options = {{"T", 2.0, "temperature of both soft-maxes"}};
  method.weight = 100;
  method.make = [](const methods::Options& options, const nn::Scope&, const methods::Setup&) {
    methods::Instance instance;
    instance.loss = [temperature = options.number("T")](const methods::Step& step) {
      return soft_match(step.student.logits, step.teachers[0].logits, temperature);
    };
    return instance;
  };
  return method;
}

Tensor random_tensor(const Shape& shape, uint32_t stream, DType dtype = DType::f32) {
  std::vector<double> values(size_t(shape.numel()));
  for (size_t i = 0; i < values.size(); i++)
    values[i] = 2 * double(uniform({1, stream, 0}, int64_t(i))) - 1;
  return from(values, shape, dtype);
}

// Twenty steps of a small residual network towards another one; the last loss over the first.
double train() {
  nn::Store student_store(1), teacher_store(2);
  models::Options options;
  models::Model student = models::make_model("resnet8_kd", nn::Scope(student_store), options);
  models::Model teacher = models::make_model("resnet20_cifar", nn::Scope(teacher_store), options);
  methods::Choice choice;
  choice.method = "soft_match";
  choice.options = {{"T", 1.0}};
  methods::Setup setup;
  setup.classes = options.classes;
  methods::Objective objective({choice}, nn::Scope(student_store), setup);
  nn::Group group;
  for (auto& param : student_store.params())
    if (!param.buffer) group.names.push_back(param.name);
  group.lr = 0.05;
  nn::Optimizer optimizer(student_store, {group}, {.momentum = 0.9});

  Tensor images = random_tensor({8, 3, 32, 32}, 7);
  std::vector<int64_t> classes{0, 1, 2, 3, 4, 5, 6, 7};
  methods::Batch batch{from(classes, {8}), {}, from(classes, {8})};
  Rng rng(3);
  double first = 0, last = 0;
  for (int step = 0; step < 20; step++) {
    StepScope scope;
    optimizer.zero_grad();
    nn::Call call{.train = true, .rng = &rng};
    methods::Teacher told;
    {
      NoGrad no_grad;
      told.logits = teacher.forward(images, {}).logits;
    }
    nn::Taps taps;
    models::Output output = student.forward(images, call);
    methods::Loss loss = objective({batch, output, taps, {&told, 1}, call});
    last = loss.total.item();
    if (step == 0) first = last;
    backward(loss.total);
    optimizer.step();
    rng.advance();
  }
  printf("loss %.4f -> %.4f\n", first, last);
  return last / first;
}

}  // namespace

int main(int argc, char** argv) {
  methods::add_method(soft_match_method());
  if (argc > 1) return program(argc, argv);  // pupil with one method more
  methods::find_method("kd");                // the library's own methods came along, too
  if (!(train() < 0.8)) {
    fprintf(stderr, "the loss did not fall\n");
    return 1;
  }
  auto loss = [](const std::vector<Tensor>& v) { return soft_match(v[0], v[1], 2); };
  std::string wrong = gradcheck(loss, {random_tensor({5, 7}, 1, DType::f64).requires_grad_(),
                                       random_tensor({5, 7}, 2, DType::f64)});
  if (!wrong.empty()) {
    fprintf(stderr, "wrong gradient: %s\n", wrong.c_str());
    return 1;
  }
  printf("gradient of soft_match: right\n");
}
