// What stands behind a handle of the C ABI.
#pragma once

#include <memory>

#include "classifier.hpp"

namespace vtn::detail {

// A handle of a classifier that was made here, with an executor of the caller's own.
vtn_classifier* adopt(std::unique_ptr<Classifier> classifier);

}  // namespace vtn::detail
