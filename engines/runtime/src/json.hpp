// Reading JSON field by field; what is missing or of another type is named.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "error.hpp"

namespace vtn::detail {

using Json = nlohmann::json;

constexpr std::size_t kMaxJson = 16 << 20;  // bytes of a document, as in vtn_export/untrusted.py

struct Malformed : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline Json parse(const std::string& text, const std::string& where, int code, const std::string& remedy,
                  const char* said = "cannot be read") {
    // Nesting is counted while parsing: a document of brackets alone must not fill memory.
    const Json::parser_callback_t shallow = [](int depth, Json::parse_event_t, Json&) {
        if (depth > 64) throw Malformed("nested deeper than 64");
        return true;
    };
    try {
        if (text.size() > kMaxJson) throw Malformed("larger than 16 MiB");
        return Json::parse(text, shallow);
    } catch (const std::exception& error) {
        const std::string told = error.what();
        throw Error(code, where + ": " + said + " (" + told.substr(0, 200) + ")" + remedy);
    }
}

inline const Json& at(const Json& value, const char* key, const std::string& what = "") {
    if (!value.is_object() || !value.contains(key)) {
        throw Malformed((what.empty() ? "" : what + ": ") + "no " + key);
    }
    return value[key];
}

inline const Json& object(const Json& value, const std::string& what) {
    if (!value.is_object()) throw Malformed(what + ": got " + value.type_name() + ", expected an object");
    return value;
}

inline const Json& array(const Json& value, const std::string& what) {
    if (!value.is_array()) throw Malformed(what + ": got " + value.type_name() + ", expected a list");
    return value;
}

inline std::string string(const Json& value, const std::string& what) {
    if (!value.is_string()) throw Malformed(what + ": got " + value.type_name() + ", expected text");
    return value.get<std::string>();
}

inline double number(const Json& value, const std::string& what) {
    if (!value.is_number()) throw Malformed(what + ": got " + value.type_name() + ", expected a number");
    return value.get<double>();
}

inline int integer(const Json& value, const std::string& what, std::int64_t low, std::int64_t high) {
    if (!value.is_number_integer()) throw Malformed(what + ": got " + value.type_name() + ", expected an integer");
    const bool huge = value.is_number_unsigned() && value.get<std::uint64_t>() > std::uint64_t(INT64_MAX);
    const std::int64_t got = huge ? INT64_MAX : value.get<std::int64_t>();
    if (got < low || got > high) {
        throw Malformed(what + ": got " + value.dump() + ", expected " + std::to_string(low) + ".." +
                        std::to_string(high));
    }
    return static_cast<int>(got);
}

}  // namespace vtn::detail
