//! DNS providers that Traefik can order certificates with, as it names them.

/// Of Traefik v3.7.9, which has them from lego v5.2.2.
#[rustfmt::skip]
pub(super) const PROVIDERS: [&str; 223] = [
    "abion", "acme-dns", "acmedns", "active24", "alidns", "aliesa", "allinkl", "alwaysdata", "anexia",
    "artfiles", "arvancloud", "auroradns", "autodns", "axelname", "azion", "azuredns", "baiducloud", "beget",
    "binarylane", "bindman", "bluecat", "bluecatv2", "bookmyname", "bunny", "checkdomain", "civo", "clouddns",
    "cloudflare", "cloudns", "cloudru", "com35", "connbyte", "conoha", "conohav3", "constellix", "corenetworks",
    "cpanel", "curanet", "czechia", "dandomain", "ddnss", "derak", "desec", "designate", "digitalocean",
    "dinahosting", "directadmin", "dns51", "dnscale", "dnsexit", "dnshomede", "dnsimple", "dnsla",
    "dnsmadeeasy", "dnsservices", "dnsupdate", "dode", "domainnameshop", "domeneshop", "dreamhost", "duckdns",
    "dyn", "dynadot", "dyndnsfree", "dynu", "easydns", "edgecenter", "edgedns", "edgeone", "efficientip",
    "epik", "eurodns", "euserv", "excedo", "exec", "exoscale", "f5xc", "fastdns", "fornex", "freemyip", "gandi",
    "gandiv5", "gcloud", "gcore", "gehirn", "gigahostno", "glesys", "gname", "godaddy", "gravity", "hetzner",
    "hostingde", "hostinger", "hostingnl", "hosttech", "hostup", "httpnet", "httpreq", "huaweicloud",
    "hurricane", "hyperone", "ibmcloud", "iijdpf", "infoblox", "infomaniak", "internetbs", "inwx", "ionos",
    "ionoscloud", "ipv64", "ispconfig", "ispconfigddns", "jdcloud", "joker", "katapult", "keyhelp", "leaseweb",
    "liara", "lightsail", "limacity", "linode", "linodev4", "liquidweb", "loopia", "luadns", "mailinabox",
    "manageengine", "manual", "metaname", "metaregistrar", "mijnhost", "mittwald", "myaddr", "mydnsjp",
    "mythicbeasts", "namecheap", "namedotcom", "namesilo", "namesurfer", "nearlyfreespeech", "nederhost",
    "neodigit", "netcup", "netlify", "netnod", "ngenix", "nicmanager", "nicru", "nifcloud", "njalla", "nodion",
    "ns1", "octenium", "omglol", "onecloudru", "onlinenet", "opusdns", "oraclecloud", "otc", "ovh", "pdns",
    "plesk", "pointdns", "porkbun", "poweradmin", "rackspace", "rage4", "rainyun", "rcodezero", "regfish",
    "regru", "rfc2136", "rimuhosting", "route53", "safedns", "sakuracloud", "scaleway", "scannet", "selectel",
    "selectelv2", "selfhostde", "servercow", "shellrent", "simply", "sonic", "spaceship", "stackpath", "syse",
    "technitium", "tele3", "tencentcloud", "timewebcloud", "todaynic", "transip", "ucloud", "ultradns",
    "uniteddomains", "variomedia", "veesp", "vegadns", "vercel", "versio", "vinyldns", "virtualname", "vkcloud",
    "volcengine", "vscale", "vultr", "wannafind", "webnames", "webnamesca", "webnamesru", "websupport", "wedos",
    "westcn", "xinnet", "yandex", "yandex360", "yandexcloud", "zilore", "zoneedit", "zoneee", "zonomi",
];

#[cfg(test)]
mod tests {
    use super::PROVIDERS;

    #[test]
    fn each_is_named_once_and_in_order() {
        assert!(PROVIDERS.windows(2).all(|pair| pair[0] < pair[1]));
        for name in ["cloudflare", "hetzner", "rfc2136", "route53"] {
            assert!(PROVIDERS.contains(&name), "{name}");
        }
    }
}
