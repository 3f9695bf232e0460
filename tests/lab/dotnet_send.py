"""Sends messages with .NET's SmtpClient, or writes them into a pickup folder: a job as JSON on standard input, the
result as one line of JSON.

Runs in the virtual environment that `packages` makes, not in that of the tests.
"""
# mypy: ignore-errors

import base64
import json
import os
import sys
import tempfile

import dotnetcore2
import pythonnet

ROOT = os.path.join(os.path.dirname(dotnetcore2.__file__), "bin")
RUNTIME = {"tfm": "netcoreapp3.1", "framework": {"name": "Microsoft.NETCore.App", "version": "3.1.0"}}

job = json.load(sys.stdin)
with tempfile.NamedTemporaryFile("w", suffix=".json") as configuration:
    json.dump({"runtimeOptions": RUNTIME}, configuration)
    configuration.flush()
    pythonnet.load("coreclr", runtime_config=configuration.name, dotnet_root=ROOT)

import clr  # noqa: E402

clr.AddReference("System.Net.Mail")
clr.AddReference("System.Net.Primitives")

from System import Array, Byte  # noqa: E402
from System.IO import MemoryStream  # noqa: E402
from System.Net import NetworkCredential  # noqa: E402
from System.Net.Mail import (  # noqa: E402
    Attachment,
    MailAddress,
    MailMessage,
    SmtpClient,
    SmtpDeliveryMethod,
    SmtpException,
    SmtpFailedRecipientException,
    SmtpFailedRecipientsException,
)


def message():
    made = MailMessage()
    made.From = MailAddress(job["from"])
    for field, box in (("to", made.To), ("cc", made.CC), ("bcc", made.Bcc)):
        for address in job[field]:
            box.Add(address)
    made.Subject, made.Body, made.IsBodyHtml = job["subject"], job["body"], job["html"]
    for name, content in job["attachments"].items():
        octets = Array[Byte](base64.b64decode(content))
        made.Attachments.Add(Attachment(MemoryStream(octets), name))
    return made


def failed(error):
    if isinstance(error, SmtpFailedRecipientsException):
        return [inner.FailedRecipient for inner in error.InnerExceptions]
    if isinstance(error, SmtpFailedRecipientException):
        return [error.FailedRecipient]
    return []


client = SmtpClient(job["host"], job["port"])
client.Timeout = job["timeout"]
client.EnableSsl = job["tls"]
client.UseDefaultCredentials = job["default_credentials"]
if job["pickup"] is not None:
    client.DeliveryMethod = SmtpDeliveryMethod.SpecifiedPickupDirectory
    client.PickupDirectoryLocation = job["pickup"]
if job["user"] is not None:
    client.Credentials = NetworkCredential(job["user"], job["password"], job["domain"])

answer = {"sent": 0}
try:
    for _ in range(job["count"]):
        client.Send(message())
        answer["sent"] += 1
except SmtpException as error:
    inner = error.InnerException
    answer |= {"error": error.Message, "status": int(error.StatusCode), "failed": failed(error)}
    answer["cause"] = inner.Message if inner is not None else None
finally:
    client.Dispose()  # closes the connection (without a QUIT)
print(json.dumps(answer))
sys.exit("error" in answer)
