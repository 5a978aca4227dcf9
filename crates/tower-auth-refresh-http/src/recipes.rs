#![doc = include_str!("recipes.md")]

macro_rules! recipes {
    ($($name:ident: $title:literal,)*) => {$(
        #[doc = concat!("The refresh call to ", $title, ".\n\n```\n")]
        #[doc = include_str!(concat!("../recipes/", stringify!($name), ".rs"))]
        #[doc = "```"]
        pub mod $name {}
    )*};
}

recipes! {
    auth0: "Auth0",
    atlassian: "Atlassian (OAuth 2.0, 3LO)",
    okta: "Okta",
    entra: "Microsoft Entra ID",
    google: "Google",
    cognito: "Amazon Cognito",
    firebase: "Firebase Authentication",
    supabase: "Supabase Auth",
    keycloak: "Keycloak",
    github: "GitHub Apps",
    slack: "Slack",
    salesforce: "Salesforce",
    hubspot: "HubSpot",
    strava: "Strava",
    fitbit: "Fitbit",
    xero: "Xero",
    quickbooks: "QuickBooks Online",
    zoho: "Zoho",
    django_simplejwt: "Django REST framework with SimpleJWT",
    django_oauth_toolkit: "Django OAuth Toolkit",
    laravel_passport: "Laravel Passport",
    flask_jwt_extended: "Flask-JWT-Extended, tokens in headers",
    flask_jwt_extended_cookies: "Flask-JWT-Extended, tokens in cookies",
    directus: "Directus",
    strapi: "Strapi 5",
    pocketbase: "PocketBase",
    graphql: "a GraphQL API",
}
