/* For LD_PRELOAD: MIT's gss_init_sec_context says that it offers confidentiality where nobody asked for it. .NET Core
 * 3.1 on Linux ends the exchange then. This clears the flag where it was not requested, as Windows' SSPI does.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <gssapi/gssapi.h>

typedef OM_uint32 init_sec_context(OM_uint32 *, gss_cred_id_t, gss_ctx_id_t *, gss_name_t, gss_OID, OM_uint32,
                                   OM_uint32, gss_channel_bindings_t, gss_buffer_t, gss_OID *, gss_buffer_t,
                                   OM_uint32 *, OM_uint32 *);

OM_uint32 gss_init_sec_context(OM_uint32 *minor, gss_cred_id_t credential, gss_ctx_id_t *context, gss_name_t target,
                               gss_OID mechanism, OM_uint32 requested, OM_uint32 lifetime,
                               gss_channel_bindings_t bindings, gss_buffer_t input, gss_OID *actual,
                               gss_buffer_t output, OM_uint32 *flags, OM_uint32 *left)
{
    static init_sec_context *real;
    OM_uint32 major;

    if (!real)
        /* Not RTLD_NEXT: .NET loads the library late, and for itself. */
        real = (init_sec_context *)dlsym(dlopen("libgssapi_krb5.so.2", RTLD_NOW), "gss_init_sec_context");
    major = real(minor, credential, context, target, mechanism, requested, lifetime, bindings, input, actual, output,
                 flags, left);
    if (flags && !(requested & GSS_C_CONF_FLAG))
        *flags &= ~GSS_C_CONF_FLAG;
    return major;
}
