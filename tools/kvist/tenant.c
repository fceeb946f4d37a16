/* `kvist tenant`: API keys for the gateway's tenants. */
#include "base/bytes.h"
#include "base/check.h"
#include "node/options.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/command.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

static const char USAGE[] = "kvist tenant new NAME, or kvist tenant key";

enum { SECRET_BYTES = 32, HEX_BYTES = 2 * SECRET_BYTES + 1 };

static void make_secret(char text_out[HEX_BYTES])
{
    uint8_t bytes[SECRET_BYTES];
    KV_CHECK(getrandom(bytes, sizeof bytes, 0) == (ssize_t)sizeof bytes);
    kv_hex_encode(bytes, sizeof bytes, text_out);
    OPENSSL_cleanse(bytes, sizeof bytes);
}

/* Says a fresh key on standard error, where no file gets it by accident; its hash is the answer. */
static void make_key(char hash_out[HEX_BYTES])
{
    char secret[HEX_BYTES], key[sizeof "kvist-" + HEX_BYTES];
    uint8_t hash[SECRET_BYTES];
    make_secret(secret);
    snprintf(key, sizeof key, "kvist-%s", secret);
    KV_CHECK(EVP_Digest(key, strlen(key), hash, NULL, EVP_sha256(), NULL) == 1);
    kv_hex_encode(hash, sizeof hash, hash_out);
    fprintf(stderr, "the API key, which is shown this once:\n%s\n", key);
    OPENSSL_cleanse(secret, sizeof secret);
    OPENSSL_cleanse(key, sizeof key);
}

static int make_tenant(int argc, char **argv)
{
    const char *name = NULL;
    const kv_arguments_t arguments = {
        .usage = "kvist tenant new NAME",
        .summary = "Makes a tenant of the gateway: prints its record for the file that "
                   "gateway.tenants_file names (it\nbegins with a line \"tenants:\" and has mode "
                   "0600), and on standard error its API key, which is kept nowhere.",
        .word = &name,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    if (name == NULL) {
        return kv_command_misuse("tenant", "NAME is missing", USAGE);
    }
    if (name[0] == '\0' || strlen(name) > KV_OPTION_TENANT_NAME_BYTES_MAX ||
        !kv_option_is_name(name)) {
        return kv_command_misuse(
            "tenant", "a name has 1 to 31 letters, digits, '-', '_' and '.'", USAGE);
    }
    char salt[HEX_BYTES], hash[HEX_BYTES];
    make_secret(salt);
    make_key(hash);
    printf("  - name: %s\n    salt: %s\n    key_sha256: [%s]\n", name, salt, hash);
    OPENSSL_cleanse(salt, sizeof salt);
    return KV_EXIT_DONE;
}

static int make_another(int argc, char **argv)
{
    const kv_arguments_t arguments = {
        .usage = "kvist tenant key",
        .summary = "Makes another API key: prints its SHA-256, to be added to a tenant's "
                   "key_sha256, and the key on standard\nerror. To replace a key, add the new one, "
                   "send the gateway SIGHUP, tell who uses it, take the old one out.",
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    char hash[HEX_BYTES];
    make_key(hash);
    printf("%s\n", hash);
    return KV_EXIT_DONE;
}

int kv_command_tenant(int argc, char **argv)
{
    const char *part = argc > 1 ? argv[1] : "";
    if (strcmp(part, "new") == 0) {
        return make_tenant(argc - 1, argv + 1);
    }
    if (strcmp(part, "key") == 0) {
        return make_another(argc - 1, argv + 1);
    }
    if (strcmp(part, "--help") == 0 || strcmp(part, "-h") == 0) {
        printf("usage: %s; with --help each says more\n", USAGE);
        return KV_EXIT_DONE;
    }
    return kv_command_misuse("tenant", "what about one?", USAGE);
}
