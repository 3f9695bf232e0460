// Sends one message with nodemailer: a job as JSON on standard input, the result as one line of JSON.
"use strict";
const nodemailer = require("nodemailer");

const job = JSON.parse(require("fs").readFileSync(0, "utf8"));
const transport = nodemailer.createTransport(job.transport);

transport.sendMail(job.message).then(
  (info) => {
    const { accepted, rejected, response, messageId } = info;
    console.log(JSON.stringify({ accepted, rejected, response, messageId }));
  },
  (error) => {
    const { message, code, responseCode, response, command, rejected } = error;
    console.log(JSON.stringify({ error: message, code, responseCode, response, command, rejected }));
    process.exitCode = 1;
  },
);
