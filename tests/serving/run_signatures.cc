// Loads a SavedModel as TensorFlow Serving does, with tensorflow::LoadSavedModel, and runs every signature.
//
//   run_signatures SAVEDMODEL TEXT [LIBRARY_OF_OPS...]
//
// Every input gets two rows: strings are TEXT and TEXT twice over, numbers are 0.5 (0 for whole numbers); an
// axis of any length is one long. Prints a line an output: signature, name, type, shape, and the values, of
// strings as hex. A Python test compares them with what Python computes.

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "tensorflow/c/c_api.h"
#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/public/session.h"

namespace {

constexpr int kRows = 2;

bool Fill(const tensorflow::TensorInfo& info, const std::string& text, tensorflow::Tensor* tensor) {
  tensorflow::TensorShape shape;
  for (int axis = 0; axis < info.tensor_shape().dim_size(); ++axis) {
    const auto size = info.tensor_shape().dim(axis).size();
    shape.AddDim(axis == 0 && size == -1 ? kRows : size == -1 ? 1 : size);
  }
  *tensor = tensorflow::Tensor(info.dtype(), shape);
  switch (info.dtype()) {
    case tensorflow::DT_STRING:
      for (int i = 0; i < tensor->NumElements(); ++i) {
        tensor->flat<tensorflow::tstring>()(i) = i % 2 ? text + " " + text : text;
      }
      return true;
    case tensorflow::DT_FLOAT:
      tensor->flat<float>().setConstant(0.5f);
      return true;
    case tensorflow::DT_INT32:
      tensor->flat<int32_t>().setZero();
      return true;
    case tensorflow::DT_INT64:
      tensor->flat<int64_t>().setZero();
      return true;
    default:
      return false;
  }
}

void Print(const std::string& signature, const std::string& name, const tensorflow::Tensor& tensor) {
  std::printf("%s %s %s [", signature.c_str(), name.c_str(), tensorflow::DataTypeString(tensor.dtype()).c_str());
  for (int axis = 0; axis < tensor.dims(); ++axis) {
    std::printf("%s%lld", axis ? "," : "", static_cast<long long>(tensor.dim_size(axis)));
  }
  std::printf("]");
  for (int64_t i = 0; i < tensor.NumElements(); ++i) {
    std::printf(" ");
    switch (tensor.dtype()) {
      case tensorflow::DT_STRING:
        std::printf("x");
        for (unsigned char byte : std::string(tensor.flat<tensorflow::tstring>()(i))) std::printf("%02x", byte);
        break;
      case tensorflow::DT_FLOAT:
        std::printf("%.9g", tensor.flat<float>()(i));
        break;
      case tensorflow::DT_INT32:
        std::printf("%d", tensor.flat<int32_t>()(i));
        break;
      case tensorflow::DT_INT64:
        std::printf("%lld", static_cast<long long>(tensor.flat<int64_t>()(i)));
        break;
      default:
        std::printf("?");
    }
  }
  std::printf("\n");
}

int Fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return Fail("usage: run_signatures SAVEDMODEL TEXT [LIBRARY_OF_OPS...]");
  for (int i = 3; i < argc; ++i) {
    TF_Status* status = TF_NewStatus();
    TF_LoadLibrary(argv[i], status);
    if (TF_GetCode(status) != TF_OK) return Fail(TF_Message(status));
    TF_DeleteStatus(status);
  }
  tensorflow::SavedModelBundle bundle;
  auto status = tensorflow::LoadSavedModel(tensorflow::SessionOptions(), tensorflow::RunOptions(), argv[1],
                                           {"serve"}, &bundle);
  if (!status.ok()) return Fail(std::string(status.message()));
  for (const auto& [signature, definition] : bundle.GetSignatures()) {
    if (definition.inputs().empty()) continue;  // the initialiser that a SavedModel lists as a signature
    std::vector<std::pair<std::string, tensorflow::Tensor>> inputs;
    for (const auto& [name, info] : definition.inputs()) {
      tensorflow::Tensor tensor;
      if (!Fill(info, argv[2], &tensor)) return Fail(signature + ": " + name + " has a type this program lacks");
      inputs.emplace_back(info.name(), tensor);
    }
    std::vector<std::string> names, fetches;
    for (const auto& [name, info] : definition.outputs()) {
      names.push_back(name);
      fetches.push_back(info.name());
    }
    std::vector<tensorflow::Tensor> outputs;
    status = bundle.GetSession()->Run(inputs, fetches, {}, &outputs);
    if (!status.ok()) return Fail(signature + ": " + std::string(status.message()));
    for (size_t i = 0; i < outputs.size(); ++i) Print(signature, names[i], outputs[i]);
  }
  return 0;
}
